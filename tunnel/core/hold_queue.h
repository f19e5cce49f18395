// SPDX-License-Identifier: GPL-2.0-or-later
// Frames for a VM that is paused: kept in the order in which they were sent, bounded by bytes and
// age, and given out once. Pure: the time is a parameter, in ms of any steady clock. One thread at
// a time.
#pragma once

#include "tunnel/core/address.h"

#include <map>
#include <utility>

namespace drover::tunnel {

struct HoldLimits {
    size_t bytes = 64 << 20;
    uint64_t age_ms = 60'000;
};

class HoldQueue {
public:
    // Where the peer's sending order puts a frame: (session, number of its record there).
    using Order = std::pair<uint64_t, uint64_t>;

    explicit HoldQueue(HoldLimits limits) : limits_(limits) {}

    // Dropped, and counted, when there is no room: what came first is what peers repeat first.
    void push(Order order, Frame frame, uint64_t now_ms);
    // Drops and counts what is too old.
    void expire(uint64_t now_ms);
    // The next frame in order; nullopt when none is left.
    std::optional<Frame> pop();

    size_t frames() const { return held_.size(); }
    size_t bytes() const { return bytes_; }
    uint64_t dropped_full() const { return dropped_full_; }
    uint64_t dropped_old() const { return dropped_old_; }

private:
    struct Held {
        Frame frame;
        uint64_t since_ms;
    };
    HoldLimits limits_;
    std::map<Order, Held> held_;
    size_t bytes_ = 0;
    uint64_t dropped_full_ = 0, dropped_old_ = 0;
};

} // namespace drover::tunnel
