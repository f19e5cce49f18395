// SPDX-License-Identifier: GPL-2.0-or-later
// How many bytes a link keeps in flight: twice its bandwidth-delay product, as
// measured (the idea of BBR: Cardwell et al., "BBR: Congestion-Based Congestion Control",
// ACM Queue 14(5), 2016; without its probing for bandwidth: TCP below does that). On a local link
// that is two or three frames, which stay in the CPU's cache; over a WAN it fills the link.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace drover {

// Not thread-safe. Times are microseconds of one monotonic clock.
class Window {
public:
    Window(uint64_t floor_bytes, uint64_t ceiling_bytes)
        : floor_(floor_bytes), ceiling_(ceiling_bytes) {}

    void acknowledged(uint64_t bytes, uint64_t sent_us, uint64_t now_us) {
        const uint64_t round_trip = std::max<uint64_t>(now_us - sent_us, 1);
        if (round_trip <= min_round_trip_us_ || (probing() && sent_us >= probe_us_)) {
            min_round_trip_us_ = round_trip;
            min_seen_us_ = now_us;
            probe_us_ = 0;
        } else if (!probing() && term(now_us) >= term(min_seen_us_) + 2) {
            // What is measured now has our own queue in it, and a window made of that would grow
            // without end: let the queue run empty first. By the clock, so that all links of a
            // stream do it together.
            probe_us_ = now_us;
        }
        sample_bytes_ += bytes;
        const uint64_t span = std::max<uint64_t>(min_round_trip_us_, 2000);
        if (now_us - sample_start_us_ >= span) {
            const uint64_t rate =
                sample_bytes_ * 1'000'000 / std::max<uint64_t>(now_us - sample_start_us_, 1);
            rates_[next_rate_++ % rates_.size()] = rate;
            sample_bytes_ = 0;
            sample_start_us_ = now_us;
        }
    }
    void set_ceiling(uint64_t bytes) { ceiling_ = std::max(bytes, floor_); }
    // Nothing was in flight: time that passed says nothing about the link.
    void idle(uint64_t now_us) {
        sample_bytes_ = 0;
        sample_start_us_ = now_us;
    }

    uint64_t bytes() const {
        if (probing()) {
            return floor_;
        }
        const uint64_t rate = *std::max_element(rates_.begin(), rates_.end());
        return std::clamp(2 * (rate * min_round_trip_us_ / 1'000'000), floor_, ceiling_);
    }
    uint64_t min_round_trip_us() const {
        return min_round_trip_us_ == never ? 0 : min_round_trip_us_;
    }

private:
    bool probing() const { return probe_us_ != 0; }

    static constexpr uint64_t never = 1'000'000'000;
    static constexpr uint64_t term(uint64_t us) { return us / 10'000'000; }

    uint64_t floor_, ceiling_;
    uint64_t min_round_trip_us_ = never, min_seen_us_ = 0;
    uint64_t probe_us_ = 0; // since when the window has been at its floor to see the round trip
    uint64_t sample_bytes_ = 0, sample_start_us_ = 0;
    std::array<uint64_t, 8> rates_{};
    size_t next_rate_ = 0;
};

} // namespace drover
