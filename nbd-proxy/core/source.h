// SPDX-License-Identifier: GPL-2.0-or-later
// The source of a stream: decides what of the disk is sent, as which
// operations, in which frames, and knows what the destination has.
//
// Pure (docs/design.md, 8): it is told what happened and answers with what to
// do next. The invariants it keeps, each found to lose data without it:
//   - the range of a write is held from before the local write until write_done;
//   - a capture's data was read while its blocks' versions stood still, or under the range lock;
//   - every LSN is given while the range of its operation is held;
//   - a frame names the last unacknowledged LSN that it overlaps, acknowledged meaning at or
//     below the contiguous watermark;
//   - on a new session everything above `applied` is sent again.
#pragma once

#include "nbd-proxy/core/block_map.h"
#include "nbd-proxy/core/frame.h"
#include "nbd-proxy/core/overlap_index.h"
#include "nbd-proxy/core/range_lock.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace drover {

// Data of operations, kept alive by whoever still needs it.
using Bytes = std::shared_ptr<const std::byte>;

// Where a frame is put together: `headroom` bytes for header and table, then the data.
struct FrameBuffer {
    std::shared_ptr<std::byte> memory;
    size_t headroom = 0;
    size_t capacity = 0; // behind the headroom
    std::byte* data() const { return memory.get() + headroom; }
};

// A frame from when it is formed until the destination has applied it. Its
// address stays the same; the link that sends it fills in `buffer`.
struct Frame {
    Lsn first, next, after;
    std::vector<Op> ops;
    // The data: in `buffer` already (a capture, or sent before), else to be copied there from
    // `pieces`.
    struct Piece {
        Bytes data;
        uint64_t length = 0;
    };
    std::vector<Piece> pieces;
    FrameBuffer buffer;
    uint64_t data_length = 0;
    uint32_t coded_length = 0; // of `buffer`, where its link had it compressed; 0: as it is
    uint64_t log_bytes = 0;    // what it holds of the log's budget
    uint64_t logged_us = 0;    // its oldest operation
    bool durable = false;      // send with FUA
    bool acked = false;

    // Copies the pieces into `into`, which has room for data_length bytes, and keeps that.
    void put_together(FrameBuffer into);
};

// Not thread-safe: the caller holds one mutex around every call.
class Source {
public:
    struct Limits {
        uint64_t log_bytes = 64 * MiB; // of logged operations, what they take beside data included
        // Once in sync, the destination applies in strict LSN order. False for a plain server,
        // which does the operations of one frame side by side: then no two of them depend on each
        // other.
        bool prefix_order = true;
        uint64_t frame_bytes = 256 * KiB; // data of a frame, as a rule
        uint64_t region_bytes = 32 * MiB; // what one link captures in a row
        size_t frame_ops = 256;
        // The destination has something already: nothing is captured before it was compared, or
        // compared_to() has passed it.
        bool compare_first = false;
    };

    struct Progress {
        uint64_t dirty_bytes = 0;
        uint64_t lag_bytes = 0; // of the log, not yet acknowledged
        uint64_t oldest_us =
            0; // when the oldest operation not yet acknowledged was logged; 0: none
        Lsn last, applied, durable;
        uint64_t captured_bytes = 0, delta_bytes = 0, zero_bytes = 0;
        uint64_t same_bytes = 0;  // found to be there already
        uint64_t acked_bytes = 0; // data of acknowledged frames: what the drain rate is made of
        bool in_sync = false;
    };

    enum class Handover { none, draining, queued, durable, voided };

    Source(BlockGeometry geometry, uint64_t lock_granularity, Limits limits);

    const BlockGeometry& geometry() const { return map_.geometry(); }
    const Limits& limits() const { return limits_; }
    RangeLock& locks() { return locks_; }

    // --- guest path; each is called while the range is held
    // Whether write_done will log this write, so that its data is worth copying now.
    bool wants_data(Extent range) const;
    // How many bytes a write of the range adds to what is still to be sent.
    uint64_t new_work(Extent range) const;
    // data: of the whole range, or null (then its clean blocks turn dirty). now_us: any monotonic
    // clock.
    void write_done(Extent range, const Bytes& data, uint64_t now_us);
    // type: zero or trim. Reads as zeroes now.
    void zero_done(Extent range, OpType type, uint64_t now_us);
    // Failed, or left undefined content: sent again from what is read there.
    void spoiled(Extent range);
    // No range is held for it.
    void flush_done(uint64_t now_us);

    // --- capture
    // Blocks that one frame captures: what of them is dirty, and their versions before it is read.
    struct Capture {
        uint64_t first_block = 0, blocks = 0;
        std::vector<Extent> parts; // dirty, in order; empty: nothing to do
        std::vector<uint32_t> versions;
        Extent lock_range; // hold this to commit

        // What is read: one piece that spans the parts.
        Extent range() const {
            return parts.empty()
                       ? Extent{}
                       : Extent{parts.front().offset, parts.back().end() - parts.front().offset};
        }
    };
    // A stretch of the disk, with something dirty in it, that nobody else captures now.
    std::optional<Extent> claim_region();
    void release_region(Extent region);
    // The first dirty byte's block in [offset, end): its offset; nullopt: none.
    std::optional<uint64_t> next_dirty(uint64_t offset, uint64_t end) const;
    // From a dirty block on: as many as are dirty as a whole, before `end` and within max_bytes; or
    // one that is dirty in part.
    Capture begin_capture(uint64_t offset, uint64_t end, uint64_t max_bytes) const;
    bool unchanged(const Capture& capture) const;
    // With its lock_range held, where it is not unchanged: its parts as they are now, to be read
    // again.
    void refresh(Capture& capture) const;
    // With its lock_range held. ops: writes and zeroes that cover the dirty parts; buffer holds the
    // writes' data one after the other.
    void commit_capture(const Capture& capture,
                        std::vector<Op> ops,
                        FrameBuffer buffer,
                        uint64_t now_us);
    // With the range held, which reads as zeroes and consists of whole blocks.
    void commit_hole(Extent range, uint64_t now_us);

    // --- what the destination has already (docs/design.md, "Hash skip")
    // Blocks whose hashes it is asked for. Its answer is about them as long as nothing is queued
    // for them, and in this session: another process there may have lost what this one had.
    struct Question {
        uint64_t first_block = 0, blocks = 0;
        uint64_t session = 0;
    };
    // The next blocks from `block` on, at most so many, for which nothing was queued since the
    // start; none: 0 blocks.
    Question next_question(uint64_t block, uint64_t most) const;
    // Blocks to be read here and compared with an answer.
    Capture begin_compare(uint64_t first_block, uint64_t blocks) const;
    // With its lock_range held, where all of it was as the answer says. Each block for which that
    // still counts is clean, with nothing to send. Answers with how many are.
    uint64_t commit_same(const Capture& same, const Question& asked);
    // What is dirty before this offset may be captured, region by region.
    void compared_to(uint64_t offset) { compared_to_ = std::max(compared_to_, offset); }

    // --- stream
    void start(const MigrationId& migration, StreamId stream);
    // The next frame to send, oldest first; null: nothing to send now.
    Frame* next_frame();
    bool has_frames() const { return resend_ != frames_.end() || !queue_.empty(); }
    // What is queued but not in a frame: captures wait while this is high.
    uint64_t queued_bytes() const { return queued_bytes_; }
    size_t queued_ops() const { return queue_.size(); }
    FrameHeader header_of(const Frame& frame) const;
    void acknowledged(Frame* frame);
    Lsn applied() const { return applied_; }
    // A flush was answered that was sent when applied() was this.
    void made_durable(Lsn lsn);

    // A new session, in two steps. First its number, which every later frame carries. Then, when
    // the destination has joined it, what it has: same_instance says that its process has been the
    // same since the last session (or that there was none). Answers with the base to send. A
    // handover on its way to a process that is gone is void, and due again once what was lost is
    // captured.
    void begin_session(uint64_t session) { stream_.session = session; }
    Lsn resume(Lsn applied, Lsn durable, bool same_instance);
    const StreamId& stream() const { return stream_; }
    const MigrationId& migration() const { return migration_; }

    // --- switchover
    // From now on: once nothing is dirty and no write is under way, hand over. Writes must be held
    // off.
    void begin_handover(const TokenHash& token_hash);
    // Takes a handover back that was queued or is durable.
    void cancel_handover();
    Handover handover() const { return handover_; }
    Lsn handover_lsn() const { return handover_lsn_; }
    // Call after releasing a range: the handover may be due.
    void settle(uint64_t now_us);

    Progress progress() const;
    // Nothing is dirty, and the destination has applied the last capture.
    bool in_sync() const { return consistent_ && applied_ >= in_sync_lsn_; }

private:
    struct Batch { // operations that travel in one frame, with the first one's LSN
        Lsn first;
        std::vector<Op> ops;
        Bytes data;
        uint64_t data_length = 0;
        uint64_t log_bytes = 0;
        FrameBuffer buffer; // set for a capture
        uint64_t logged_us = 0;
    };
    struct Undurable {
        Lsn last;
        std::vector<Extent> ranges;
    };

    Lsn append(Batch batch, uint64_t now_us);
    Lsn append_mark(OpType type, uint64_t now_us, Bytes data = nullptr, uint64_t length = 0);
    void bump(Extent range);
    bool log_takes(uint64_t data_bytes) const; // one more operation is within the budget
    void turn_inconsistent();
    void turn_dirty(Extent range);
    template <typename Log>
    void log_clean_runs(Extent range, Log&& log);
    void wrote_something(uint64_t now_us);
    static bool must_follow(const Frame& frame, const Batch& batch);
    void set_after(Frame& frame);
    void retract_marks();
    void retire_front();
    void queued(uint64_t first_block, uint64_t blocks);
    uint32_t& version(uint64_t block) { return versions_[block % versions_.size()]; }
    uint32_t version(uint64_t block) const { return versions_[block % versions_.size()]; }

    Limits limits_;
    BlockMap map_;
    RangeLock locks_;
    // Versions of blocks, hashed: a collision costs a second read, nothing else.
    std::vector<uint32_t> versions_;

    uint64_t capture_cursor_ = 0; // where the next region is looked for
    std::vector<Extent> claimed_;
    uint64_t compared_to_ = 0;       // with compare_first
    std::vector<bool> never_queued_; // by block, with compare_first

    MigrationId migration_{};
    StreamId stream_;
    Lsn last_;    // given
    Lsn applied_; // the contiguous watermark
    Lsn durable_;
    Lsn floor_; // the last `inconsistent` mark: strict order up to it, nothing later before it
    Lsn in_sync_lsn_;                  // the last `consistent` mark
    std::deque<Batch> queue_;          // LSN order, not yet in a frame
    std::map<uint64_t, Frame> frames_; // by first LSN, not yet acknowledged
    std::map<uint64_t, Frame>::iterator resend_ = frames_.end(); // from here on: send again
    OverlapIndex unacked_;
    std::deque<Undurable> undurable_; // applied, not known to be durable
    // The same there, which may have been in its page cache only. Durable with an LSN that was
    // given later: a flush that was asked for before does not tell.
    std::deque<Undurable> same_;
    bool consistent_ = false; // the mark was sent, nothing turned dirty since

    Handover handover_ = Handover::none;
    TokenHash token_hash_{};
    Lsn handover_lsn_;

    uint64_t log_bytes_ = 0, queued_bytes_ = 0;
    uint64_t now_us_ = 0; // the latest time that was told
    Progress totals_;
};

} // namespace drover
