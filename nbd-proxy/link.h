// SPDX-License-Identifier: GPL-2.0-or-later
// One connection of a stream and the thread that feeds it: reads what is
// dirty, has the core commit it, sends frames and takes the replies.
#pragma once

#include "nbd-proxy/backend.h"
#include "nbd-proxy/compressor.h"
#include "nbd-proxy/core/window.h"
#include "nbd-proxy/nbd_handle.h"
#include "nbd-proxy/reader_ring.h"
#include "nbd-proxy/tracked.h"

#include <atomic>
#include <list>
#include <optional>

namespace drover {

// Bounds what all links send together, in bytes a second.
class Pacer {
public:
    void set_rate(uint64_t bytes_per_s); // 0: no bound
    uint64_t rate() const;
    // How long to wait before anything may be sent; 0: send, and say so with sent().
    uint64_t wait_us(uint64_t now_us);
    void sent(uint64_t bytes, uint64_t now_us);

private:
    mutable std::mutex mutex_;
    uint64_t rate_ = 0;
    uint64_t free_at_us_ = 0; // when what was sent has left at the rate
};

// What the links of one stream share.
struct StreamContext {
    Tracked& tracked;
    Backend& disk;
    std::shared_ptr<BufferPool> buffers;
    Pacer pacer;
    std::unique_ptr<Compressor> compressor; // null: frames go as they are
    // What held the links up since the last tick of the compressor.
    std::atomic<bool> link_full{false}, coding_late{false};
    std::atomic<uint64_t> answered_bytes{0};
    bool plain = false;                      // any NBD server: frames are applied as requests of it
    std::atomic<uint64_t> window_ceiling{0}; // bytes in flight on one link, at most
    std::atomic<uint64_t> sent_bytes{0};
    std::atomic<bool> stop{false};
    // At the stop: wait for the answers to what was sent. Not where a connection was lost: a frame
    // on another may wait for what that one carried.
    std::atomic<bool> take_answers{false};
    // The holes of the whole disk have been captured.
    std::atomic<bool> holes_known{false};
    // Frames were: others may have to look again. Called by any link's thread.
    std::function<void(bool nothing_left)> acknowledged;
};

// Leaves the processor to the guest: a link that copied while the guest had requests rests for as
// long as it worked. Half a processor copies more than a WAN takes. One thread's.
class GiveWay {
public:
    // How long to rest now.
    std::chrono::microseconds rest(uint64_t guest_requests);

private:
    uint64_t requests_ = 0;
    uint64_t used_us_ = 0;
};

class Link {
public:
    // flushes: this link makes the destination flush from time to time.
    Link(StreamContext& context, NbdHandle handle, bool flushes);
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    // Until context.stop. Throws Error(peer), errno
    // ENOTCONN, when the connection is lost: a new session may help; Error(io) or Error(peer) with
    // another errno when a disk failed or the far side refused.
    void run();
    // When run() has ended: until what was sent has been answered, for two seconds at most.
    void take_answers();
    bool connected() const { return !nbd_ended(handle_.get()); }
    // Thread-safe: there may be work.
    void wake();
    // Thread-safe. What TCP says of the connection; zeroes where it is no TCP.
    struct TcpFacts {
        uint64_t sent = 0, retransmitted = 0; // segments
        uint64_t round_trip_us = 0;           // the shortest
    };
    TcpFacts tcp() const;

private:
    // A frame, or a part of one, that was sent and not answered.
    struct Request {
        Link* link = nullptr;
        Frame* frame = nullptr; // null: a flush
        uint64_t bytes = 0, sent_us = 0;
        Lsn flushed;        // a flush: applied() when it was sent
        unsigned parts = 1; // replies that are still to come
        int error = 0;
    };
    struct Read {
        Source::Capture capture;
        FrameBuffer buffer;
    };

    static int answered(void* request, int* error) noexcept;

    bool room() const { return in_flight_ < window_.bytes(); }
    bool send_frames();
    void take_frames();
    bool next_is_due();
    void send(Frame& frame);
    void send_plain(Frame& frame);
    void submit(int64_t cookie);
    void finish_requests();
    void flush_if_due(uint64_t now_us);
    bool capture_some();
    bool capture_holes();
    bool find_extent(uint64_t offset, uint64_t end);
    void capture_hole(Extent range);
    void start_read(Source::Capture capture);
    bool finish_reads();
    void commit(Source::Capture& capture, FrameBuffer buffer);
    void wait_for_events(uint64_t timeout_us);
    void drop_region();

    StreamContext& context_;
    Tracked& tracked_;
    NbdHandle handle_;
    UniqueFd wake_;
    std::atomic<bool> sleeping_{false};
    std::optional<ReaderRing> ring_; // where the backend can be read so
    Window window_;
    GiveWay give_way_;

    std::list<Request> requests_;
    size_t answered_ = 0; // of requests_, waiting for finish_requests
    uint64_t in_flight_ = 0;
    uint64_t heard_us_ = 0;            // when the last answer was
    std::deque<Compressor::Job> next_; // to be sent, in this order
    ShrinkGuess guess_;

    std::optional<Extent> region_;
    uint64_t cursor_ = 0;
    Extent known_; // the extent at the cursor, as the backend last said
    bool known_zero_ = false;
    std::list<Read> reads_;
    std::vector<ReaderRing::Completion> completions_;

    bool flushes_;
    bool scanning_; // for holes, before anything else
    bool flush_under_way_ = false;
    uint64_t next_flush_us_ = 0;
};

} // namespace drover
