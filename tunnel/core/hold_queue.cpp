// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/hold_queue.h"

namespace drover::tunnel {
namespace {

constexpr size_t overhead = 128; // of a frame in the map: small frames count too

size_t cost_of(const Frame& frame) {
    return frame.size() + overhead;
}

} // namespace

void HoldQueue::push(Order order, Frame frame, uint64_t now_ms) {
    expire(now_ms);
    const size_t cost = cost_of(frame);
    if (bytes_ + cost > limits_.bytes) {
        ++dropped_full_;
        return;
    }
    if (held_.try_emplace(order, Held{std::move(frame), now_ms}).second) {
        bytes_ += cost;
    }
}

void HoldQueue::expire(uint64_t now_ms) {
    // The order is nearly that of their ages.
    while (!held_.empty() && held_.begin()->second.since_ms + limits_.age_ms < now_ms) {
        bytes_ -= cost_of(held_.begin()->second.frame);
        held_.erase(held_.begin());
        ++dropped_old_;
    }
}

std::optional<Frame> HoldQueue::pop() {
    if (held_.empty()) {
        return std::nullopt;
    }
    Frame frame = std::move(held_.begin()->second.frame);
    bytes_ -= cost_of(frame);
    held_.erase(held_.begin());
    return frame;
}

} // namespace drover::tunnel
