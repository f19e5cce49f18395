// SPDX-License-Identifier: GPL-2.0-or-later
// The source of a stream as threads share it: the pure core, its mutex, and
// waiting for a range. Guest threads and the sender's links meet here and nowhere else.
#pragma once

#include "nbd-proxy/core/source.h"
#include "nbd-proxy/core/throttle.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

namespace drover {

inline uint64_t monotonic_us() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

class Tracked {
public:
    using Lock = std::unique_lock<std::mutex>;

    Tracked(BlockGeometry geometry, uint64_t lock_granularity, Source::Limits limits)
        : source(geometry, lock_granularity, limits) {}

    // Holds a range of the disk. Made and destroyed with the mutex free; no I/O of anybody else
    // on an overlapping range runs in between.
    class Range {
    public:
        Range(Tracked& tracked, Extent range);
        ~Range();
        Range(const Range&) = delete;
        Range& operator=(const Range&) = delete;

    private:
        Tracked& tracked_;
        RangeLock::Ticket ticket_;
    };

    // Makes a client's write wait if that writes too much for the stream. With no lock held.
    // Whether it waited.
    bool pace(Throttle::ClientId client, Extent where);
    // Lets those go that wait in pace().
    void release_throttle();
    // As the sender measured.
    void tick_throttle(const Throttle::Load& load, uint64_t now_us);

    std::mutex mutex;
    Source source;                   // under mutex
    Throttle throttle;               // under mutex
    std::condition_variable changed; // the handover went on, or a write ended; with mutex
    // There may be something to send. Called without the mutex, from any thread; set before the
    // first guest write.
    std::function<void()> wake;
    // How many requests the guest has made so far: who copies beside it gives way to it. Set by the
    // disk that reports to this, which outlives it; from any thread.
    std::function<uint64_t()> guest_requests = [] { return uint64_t{0}; };
    // Whether somebody may have to wait in pace(), for those who have no mutex.
    bool throttling() const { return throttling_.load(std::memory_order_relaxed); }

private:
    std::atomic<bool> throttling_{false};
    std::condition_variable unthrottled_; // with mutex
};

} // namespace drover
