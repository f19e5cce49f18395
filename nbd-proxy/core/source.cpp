// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/source.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace drover {
namespace {

// 256 KiB of counters: collisions are rare beside the writes of a few milliseconds.
constexpr size_t version_counters = 64 * KiB;
// What a logged operation takes beside its data, rounded up: many small ones must not go around the
// budget.
constexpr uint64_t op_overhead = 256;

} // namespace

void Frame::put_together(FrameBuffer into) {
    std::byte* to = into.data();
    for (const Piece& piece : pieces) {
        std::memcpy(to, piece.data.get(), piece.length);
        to += piece.length;
    }
    pieces.clear();
    buffer = std::move(into);
}

Source::Source(BlockGeometry geometry, uint64_t lock_granularity, Limits limits)
    : limits_(limits), map_(geometry), locks_(lock_granularity), versions_(version_counters) {}

void Source::start(const MigrationId& migration, StreamId stream) {
    migration_ = migration;
    stream_ = stream;
    map_.mark_all();
    if (limits_.compare_first) {
        never_queued_.assign(geometry().blocks(), true);
    } else {
        compared_to(geometry().disk_size);
    }
}

// --- guest path

void Source::bump(Extent range) {
    const uint64_t last = geometry().block_of(range.end() - 1);
    for (uint64_t block = geometry().block_of(range.offset); block <= last; ++block) {
        ++version(block);
        if (block - geometry().block_of(range.offset) == versions_.size()) {
            break; // every counter has moved
        }
    }
}

// The destination stops being a prefix with the first write that is not logged in its place: the
// mark has to stand before every operation that is logged after it.
void Source::turn_inconsistent() {
    if (consistent_) {
        consistent_ = false;
        floor_ = append_mark(OpType::inconsistent, now_us_);
    }
}

void Source::turn_dirty(Extent range) {
    turn_inconsistent();
    map_.mark(range);
}

// Dirty blocks of the range get its sub-blocks added; each run of clean ones is given to `log`.
template <typename Log>
void Source::log_clean_runs(Extent range, Log&& log) {
    const uint64_t end_block = geometry().block_of(range.end() - 1) + 1;
    for (uint64_t block = geometry().block_of(range.offset); block < end_block;) {
        const bool dirty = map_.dirty(block);
        uint64_t run_end = block + 1;
        while (run_end < end_block && map_.dirty(run_end) == dirty) {
            ++run_end;
        }
        const Extent bytes = geometry().bytes_of(block, run_end - block);
        const uint64_t begin = std::max(bytes.offset, range.offset);
        const Extent part{begin, std::min(bytes.end(), range.end()) - begin};
        if (dirty) {
            map_.mark(part);
        } else {
            log(part);
        }
        block = run_end;
    }
}

bool Source::log_takes(uint64_t data_bytes) const {
    return log_bytes_ + data_bytes + op_overhead <= limits_.log_bytes;
}

bool Source::wants_data(Extent range) const {
    if (!log_takes(range.length) || range.length > max_frame_data) {
        return false;
    }
    const uint64_t last = geometry().block_of(range.end() - 1);
    for (uint64_t block = geometry().block_of(range.offset); block <= last; ++block) {
        if (!map_.dirty(block)) {
            return true;
        }
    }
    return false;
}

uint64_t Source::new_work(Extent range) const {
    if (range.length == 0) {
        return 0;
    }
    uint64_t work = 0;
    const uint64_t last = geometry().block_of(range.end() - 1);
    for (uint64_t block = geometry().block_of(range.offset); block <= last; ++block) {
        const BlockMap::Mask mask = map_.mask(block);
        if (mask == BlockMap::full) {
            continue;
        }
        const Extent bytes = geometry().bytes_of(block, 1);
        const uint64_t begin = std::max(bytes.offset, range.offset);
        const uint64_t end = std::min(bytes.end(), range.end());
        if (mask == 0) {
            work += end - begin;
            continue;
        }
        const uint64_t unit = geometry().sub_block_size();
        for (uint64_t at = begin - (begin - bytes.offset) % unit; at < end; at += unit) {
            work += (mask >> ((at - bytes.offset) / unit) & 1) == 0 ? unit : 0;
        }
    }
    return work;
}

// A write where none may be: whoever trusted the handover must not, from before the write on.
void Source::wrote_something(uint64_t now_us) {
    if (handover_ == Handover::queued || handover_ == Handover::durable) {
        append_mark(OpType::void_, now_us);
        handover_ = Handover::voided;
    }
}

void Source::write_done(Extent range, const Bytes& data, uint64_t now_us) {
    bump(range);
    wrote_something(now_us);
    log_clean_runs(range, [&](Extent part) {
        if (data == nullptr || !log_takes(part.length)) {
            turn_dirty(part);
            return;
        }
        Batch batch;
        batch.ops = {{OpType::write, part}};
        batch.data = Bytes(data, data.get() + (part.offset - range.offset));
        batch.data_length = part.length;
        batch.log_bytes = part.length + op_overhead;
        append(std::move(batch), now_us);
        totals_.delta_bytes += part.length;
    });
}

void Source::zero_done(Extent range, OpType type, uint64_t now_us) {
    bump(range);
    wrote_something(now_us);
    log_clean_runs(range, [&](Extent part) {
        if (!log_takes(0)) {
            turn_dirty(part);
            return;
        }
        Batch batch;
        batch.ops = {{type, part}};
        batch.log_bytes = op_overhead;
        append(std::move(batch), now_us);
        totals_.zero_bytes += part.length;
    });
}

void Source::spoiled(Extent range) {
    bump(range);
    wrote_something(now_us_);
    log_clean_runs(range, [&](Extent part) { turn_dirty(part); });
}

void Source::flush_done(uint64_t now_us) {
    // Two flushes with nothing between them are one; and while the bulk runs, order means nothing
    // yet.
    if (!consistent_ || (!queue_.empty() && queue_.back().ops.back().type == OpType::flush)) {
        return;
    }
    append_mark(OpType::flush, now_us);
}

// --- capture

std::optional<Extent> Source::claim_region() {
    if (map_.dirty_blocks() == 0) {
        return std::nullopt; // looked for often, and the map of a large disk is long
    }
    const uint64_t size = geometry().disk_size;
    const uint64_t regions = (size + limits_.region_bytes - 1) / limits_.region_bytes;
    const uint64_t start = capture_cursor_ / limits_.region_bytes;
    for (uint64_t i = 0; i < regions;) {
        const uint64_t begin = (start + i) % regions * limits_.region_bytes;
        const Extent region{begin, std::min(limits_.region_bytes, size - begin)};
        const auto dirty = next_dirty(region.offset, size);
        if (!dirty || std::max(*dirty, region.end()) > compared_to_) {
            i += regions - begin / limits_.region_bytes; // on to the start of the disk
            continue;
        }
        if (*dirty >= region.end()) {
            i += *dirty / limits_.region_bytes - begin / limits_.region_bytes;
            continue;
        }
        if (std::find(claimed_.begin(), claimed_.end(), region) == claimed_.end()) {
            claimed_.push_back(region);
            capture_cursor_ = region.end() < size ? region.end() : 0;
            return region;
        }
        ++i;
    }
    return std::nullopt;
}

void Source::release_region(Extent region) {
    std::erase(claimed_, region);
}

std::optional<uint64_t> Source::next_dirty(uint64_t offset, uint64_t end) const {
    if (offset >= end) {
        return std::nullopt; // the end of the disk may lie within its last block
    }
    const uint64_t end_block = (end + geometry().block_size - 1) / geometry().block_size;
    const auto block = map_.next_dirty(geometry().block_of(offset), end_block);
    return block ? std::optional(*block * geometry().block_size) : std::nullopt;
}

Source::Capture Source::begin_capture(uint64_t offset, uint64_t end, uint64_t max_bytes) const {
    const uint64_t block_size = geometry().block_size;
    const uint64_t first = geometry().block_of(offset);
    const uint64_t end_block = std::min((end + block_size - 1) / block_size,
                                        first + std::max<uint64_t>(max_bytes / block_size, 1));
    Capture capture;
    capture.first_block = first;
    capture.blocks = std::max<uint64_t>(map_.run_of_full(first, end_block), 1);
    capture.lock_range = geometry().bytes_of(first, capture.blocks);
    refresh(capture);
    for (uint64_t block = first; block < first + capture.blocks; ++block) {
        capture.versions.push_back(version(block));
    }
    return capture;
}

bool Source::unchanged(const Capture& capture) const {
    for (uint64_t i = 0; i < capture.blocks; ++i) {
        if (version(capture.first_block + i) != capture.versions[i]) {
            return false;
        }
    }
    return true;
}

void Source::refresh(Capture& capture) const {
    std::vector<Extent>& parts = capture.parts;
    parts.clear();
    const auto add = [&](Extent part) {
        if (part.length == 0) {
            return;
        }
        if (!parts.empty() && parts.back().end() == part.offset) {
            parts.back().length += part.length;
        } else {
            parts.push_back(part);
        }
    };
    for (uint64_t block = capture.first_block; block < capture.first_block + capture.blocks;
         ++block) {
        const Extent bytes = geometry().bytes_of(block, 1);
        const BlockMap::Mask mask = map_.mask(block);
        if (mask == BlockMap::full) {
            add(bytes);
            continue;
        }
        for (unsigned i = 0; i < BlockGeometry::sub_blocks; ++i) {
            const uint64_t begin = bytes.offset + uint64_t{i} * geometry().sub_block_size();
            if ((mask >> i & 1) != 0 && begin < bytes.end()) {
                add({begin, std::min<uint64_t>(geometry().sub_block_size(), bytes.end() - begin)});
            }
        }
    }
}

void Source::commit_capture(const Capture& capture,
                            std::vector<Op> ops,
                            FrameBuffer buffer,
                            uint64_t now_us) {
    for (uint64_t i = 0; i < capture.blocks; ++i) {
        map_.clear(capture.first_block + i);
    }
    queued(capture.first_block, capture.blocks);
    if (ops.empty()) {
        return;
    }
    Batch batch;
    for (const Op& op : ops) {
        (has_data(op.type) ? totals_.captured_bytes : totals_.zero_bytes) += op.where.length;
        batch.data_length += has_data(op.type) ? op.where.length : 0;
    }
    batch.ops = std::move(ops);
    if (batch.data_length > 0) {
        batch.buffer = std::move(buffer);
    }
    append(std::move(batch), now_us);
}

void Source::commit_hole(Extent range, uint64_t now_us) {
    const uint64_t end = geometry().block_of(range.end() - 1) + 1;
    for (uint64_t block = geometry().block_of(range.offset); block < end; ++block) {
        if (map_.dirty(block)) {
            map_.clear(block);
        }
    }
    queued(geometry().block_of(range.offset), end - geometry().block_of(range.offset));
    Batch batch;
    batch.ops = {{OpType::trim, range}};
    append(std::move(batch), now_us);
    totals_.zero_bytes += range.length;
}

// --- what the destination has already

// A block is dirty as a whole until this. Its first capture is what comes first: a clean one has
// had it.
void Source::queued(uint64_t first_block, uint64_t blocks) {
    if (limits_.compare_first) {
        const auto first = never_queued_.begin() + static_cast<ptrdiff_t>(first_block);
        std::fill(first, first + static_cast<ptrdiff_t>(blocks), false);
    }
}

Source::Question Source::next_question(uint64_t block, uint64_t most) const {
    const auto begin = never_queued_.begin();
    const auto first =
        std::find(begin + static_cast<ptrdiff_t>(std::min(block, never_queued_.size())),
                  never_queued_.end(),
                  true);
    const auto last = std::find(first, never_queued_.end(), false);
    return {static_cast<uint64_t>(first - begin),
            std::min(most, static_cast<uint64_t>(last - first)),
            stream_.session};
}

Source::Capture Source::begin_compare(uint64_t first_block, uint64_t blocks) const {
    Capture capture;
    capture.first_block = first_block;
    capture.blocks = blocks;
    capture.lock_range = geometry().bytes_of(first_block, blocks);
    for (uint64_t block = first_block; block < first_block + blocks; ++block) {
        capture.versions.push_back(version(block));
    }
    return capture;
}

uint64_t Source::commit_same(const Capture& same, const Question& asked) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < same.blocks; ++i) {
        const uint64_t block = same.first_block + i;
        if (asked.session != stream_.session || block < asked.first_block ||
            block >= asked.first_block + asked.blocks) {
            continue; // not what was asked, or not whom
        }
        if (!never_queued_[block]) {
            continue; // what was queued may have been applied after it was hashed there
        }
        if (version(block) != same.versions[i]) {
            continue; // written here since it was read
        }
        map_.clear(block);
        never_queued_[block] = false;
        const Extent bytes = geometry().bytes_of(block, 1);
        const Lsn durable_with(last_.v + 1);
        if (same_.empty() || same_.back().last != durable_with) {
            same_.push_back({durable_with, {}});
        }
        std::vector<Extent>& ranges = same_.back().ranges;
        if (!ranges.empty() && ranges.back().end() == bytes.offset) {
            ranges.back().length += bytes.length;
        } else {
            ranges.push_back(bytes);
        }
        totals_.same_bytes += bytes.length;
        ++count;
    }
    return count;
}

// --- stream

Lsn Source::append(Batch batch, uint64_t now_us) {
    now_us_ = std::max(now_us_, now_us);
    batch.first = Lsn(last_.v + 1);
    batch.logged_us = now_us_;
    last_.v += batch.ops.size();
    log_bytes_ += batch.log_bytes;
    queued_bytes_ += batch.data_length;
    queue_.push_back(std::move(batch));
    return last_;
}

Lsn Source::append_mark(OpType type, uint64_t now_us, Bytes data, uint64_t length) {
    Batch batch;
    batch.ops = {{type, {0, length}}};
    batch.data = std::move(data);
    batch.data_length = length;
    return append(std::move(batch), now_us);
}

// Where a frame's operations run side by side: whether the batch has to wait for one of them.
bool Source::must_follow(const Frame& frame, const Batch& batch) {
    return std::any_of(batch.ops.begin(), batch.ops.end(), [&](const Op& later) {
        return is_mark(later.type) ||
               std::any_of(frame.ops.begin(), frame.ops.end(), [&](const Op& op) {
                   return is_mark(op.type) || op.where.overlaps(later.where);
               });
    });
}

Frame* Source::next_frame() {
    if (resend_ != frames_.end()) {
        return &(resend_++)->second;
    }
    if (queue_.empty()) {
        return nullptr;
    }
    Frame frame;
    frame.first = frame.next = queue_.front().first;
    frame.logged_us = queue_.front().logged_us;
    while (!queue_.empty()) {
        Batch& batch = queue_.front();
        const bool alone = batch.buffer.memory != nullptr;
        if (!frame.ops.empty() &&
            (alone || frame.data_length + batch.data_length > limits_.frame_bytes ||
             frame.ops.size() + batch.ops.size() > limits_.frame_ops ||
             (!limits_.prefix_order && must_follow(frame, batch)))) {
            break;
        }
        frame.next.v += batch.ops.size();
        for (const Op& op : batch.ops) {
            frame.durable |= op.type == OpType::handover;
            frame.ops.push_back(op);
        }
        if (batch.data_length > 0 && !alone) {
            frame.pieces.push_back({std::move(batch.data), batch.data_length});
        }
        frame.buffer = std::move(batch.buffer);
        frame.data_length += batch.data_length;
        frame.log_bytes += batch.log_bytes;
        queued_bytes_ -= batch.data_length;
        queue_.pop_front();
        if (alone || frame.durable) {
            break;
        }
    }
    set_after(frame);
    const auto [it, inserted] = frames_.emplace(frame.first.v, std::move(frame));
    resend_ = frames_.end();
    return &it->second;
}

void Source::set_after(Frame& frame) {
    const Lsn before(frame.first.v - 1);
    bool strict = limits_.prefix_order && (consistent_ || frame.first <= floor_);
    Lsn overlapped = floor_ < frame.first ? floor_ : Lsn();
    for (const Op& op : frame.ops) {
        strict |= is_mark(op.type);
        if (!is_mark(op.type)) {
            overlapped = std::max(overlapped, unacked_.last(op.where));
        }
    }
    frame.after = strict ? before : overlapped <= applied_ ? Lsn() : overlapped;
    Lsn lsn = frame.first;
    for (const Op& op : frame.ops) {
        if (!is_mark(op.type)) {
            unacked_.touch(op.where, lsn);
        }
        ++lsn.v;
    }
}

FrameHeader Source::header_of(const Frame& frame) const {
    return {migration_, stream_, frame.first, frame.next, frame.after, false, std::nullopt};
}

void Source::acknowledged(Frame* frame) {
    frame->acked = true;
    totals_.acked_bytes += frame->data_length + frame_op_size * frame->ops.size();
    while (!frames_.empty() && frames_.begin()->second.acked) {
        retire_front();
    }
}

void Source::retire_front() {
    const auto it = frames_.begin();
    Frame& frame = it->second;
    applied_ = Lsn(frame.next.v - 1);
    log_bytes_ -= frame.log_bytes;
    Undurable entry{applied_, {}};
    for (const Op& op : frame.ops) {
        if (!is_mark(op.type)) {
            unacked_.forget(op.where, applied_);
            entry.ranges.push_back(op.where);
        }
    }
    undurable_.push_back(std::move(entry));
    if (frame.durable) {
        made_durable(applied_);
        if (handover_ == Handover::queued && applied_ >= handover_lsn_) {
            handover_ = Handover::durable;
        }
    }
    if (resend_ == it) {
        ++resend_;
    }
    frames_.erase(it);
}

void Source::made_durable(Lsn lsn) {
    durable_ = std::max(durable_, lsn);
    for (std::deque<Undurable>* const entries : {&undurable_, &same_}) {
        while (!entries->empty() && entries->front().last <= durable_) {
            entries->pop_front();
        }
    }
}

// The marks on their way stand for a destination that has everything before them: now it has not.
void Source::retract_marks() {
    const auto retract = [](std::vector<Op>& ops) {
        uint64_t data_length = 0;
        for (Op& op : ops) {
            if (op.type == OpType::consistent) {
                op.type = OpType::flush;
            } else if (op.type == OpType::handover) {
                data_length += op.where.length;
                op = {OpType::void_, {}};
            }
        }
        return data_length;
    };
    for (auto& [first, frame] : frames_) {
        // A handover ends its frame.
        const uint64_t data_length = retract(frame.ops);
        frame.durable = false;
        frame.data_length -= data_length;
        if (data_length > 0 && !frame.pieces.empty()) {
            frame.pieces.pop_back();
        }
    }
    for (Batch& batch : queue_) {
        const uint64_t data_length = retract(batch.ops);
        batch.data_length -= data_length;
        queued_bytes_ -= data_length;
    }
}

Lsn Source::resume(Lsn applied, Lsn durable, bool same_instance) {
    if (same_instance) {
        // The handover is not done before it is durable. One that was taken back is: what came
        // after it may be applied already, and must not be applied again over that.
        const auto done = [&](const Frame& frame) {
            const Lsn last(frame.next.v - 1);
            const bool owed = handover_ == Handover::queued && frame.first <= handover_lsn_ &&
                              handover_lsn_ <= last && last > durable;
            return last <= applied && !owed;
        };
        while (!frames_.empty() && done(frames_.begin()->second)) {
            Frame& frame = frames_.begin()->second;
            frame.durable = frame.durable && Lsn(frame.next.v - 1) <= durable;
            totals_.acked_bytes += frame.acked ? 0 : frame.data_length;
            retire_front();
        }
    } else if (handover_ != Handover::durable) {
        made_durable(std::min(durable, applied_));
        // It does not count itself as consistent any more; what is sent again makes it so.
        turn_inconsistent();
        for (std::deque<Undurable>* const entries : {&undurable_, &same_}) {
            for (const Undurable& lost : *entries) {
                for (const Extent& range : lost.ranges) {
                    map_.mark(range);
                }
            }
            entries->clear();
        }
        durable_ = applied_; // what was lost is dirty: nothing below is owed any more
        retract_marks();
        if (handover_ == Handover::queued) {
            handover_ = Handover::draining;
        }
        settle(now_us_);
    }
    for (auto& [first, frame] : frames_) {
        frame.acked = false;
    }
    resend_ = frames_.begin();
    return applied_;
}

// --- switchover

void Source::begin_handover(const TokenHash& token_hash) {
    token_hash_ = token_hash;
    handover_ = Handover::draining;
}

void Source::cancel_handover() {
    if (handover_ == Handover::queued || handover_ == Handover::durable) {
        append_mark(OpType::void_, now_us_);
    }
    handover_ = Handover::none;
}

void Source::settle(uint64_t now_us) {
    if (map_.dirty_blocks() != 0) {
        return;
    }
    if (!consistent_) {
        in_sync_lsn_ = append_mark(OpType::consistent, now_us);
        consistent_ = true;
    }
    if (handover_ == Handover::draining && locks_.empty()) {
        const auto copy = std::make_shared<TokenHash>(token_hash_);
        handover_lsn_ =
            append_mark(OpType::handover, now_us, Bytes(copy, copy->data()), copy->size());
        handover_ = Handover::queued;
    }
}

Source::Progress Source::progress() const {
    Progress progress = totals_;
    progress.dirty_bytes = map_.dirty_bytes();
    progress.lag_bytes = log_bytes_;
    if (!frames_.empty()) {
        progress.oldest_us = frames_.begin()->second.logged_us;
    } else if (!queue_.empty()) {
        progress.oldest_us = queue_.front().logged_us;
    }
    progress.last = last_;
    progress.applied = applied_;
    progress.durable = durable_;
    progress.in_sync = in_sync();
    return progress;
}

} // namespace drover
