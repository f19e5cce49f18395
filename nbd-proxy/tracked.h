// SPDX-License-Identifier: GPL-2.0-or-later
// The source of a stream as threads share it: the pure core, its mutex, and
// waiting for a range. Guest threads and the sender's links meet here and nowhere else.
#pragma once

#include "nbd-proxy/core/source.h"

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

    std::mutex mutex;
    Source source;                   // under mutex
    std::condition_variable changed; // the handover went on, or a write ended; with mutex
    // There may be something to send. Called without the mutex, from any thread; set before the
    // first guest write.
    std::function<void()> wake;
    // How many requests the guest has made so far: who copies beside it gives way to it. Set by the
    // disk that reports to this, which outlives it; from any thread.
    std::function<uint64_t()> guest_requests = [] { return uint64_t{0}; };
};

} // namespace drover
