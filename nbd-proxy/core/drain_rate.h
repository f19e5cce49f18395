// SPDX-License-Identifier: GPL-2.0-or-later
// What a link can carry, and what its writers make for it, from what was acknowledged of how much
// there was. Pure: told at each tick, answers with rates.
//
// Only a link that is full says what it can carry. So the drain rate is lowered by nothing but
// answers that came while more waited than it drains in a tick and the round trip that each answer
// takes: not by an idle link, nor one whose writers are slowed down to less than it takes, not by
// one that has fallen silent (that is stalled(), and says nothing of its rate), and not by zeroes
// where they are most of it, which take the time of data to read and carry none.
#pragma once

#include <algorithm>
#include <cstdint>

namespace drover {

// Not thread-safe. Times are microseconds of one monotonic clock, all else bytes since the start.
class DrainRate {
public:
    struct Totals {
        uint64_t acknowledged = 0;
        uint64_t made = 0;   // captured, logged, and dirty now: it grows with what writers add
        uint64_t zeroes = 0; // sent as such
        uint64_t left = 0;   // dirty, or not yet acknowledged
    };

    // frame: what is acknowledged at once, as a rule.
    explicit DrainRate(uint64_t frame_bytes) : frame_bytes_(frame_bytes) {}

    void tick(const Totals& now, uint64_t round_trip_us, uint64_t now_us) {
        if (ticked_us_ == 0 || now_us <= ticked_us_) {
            begin(now, now_us);
            return;
        }
        const uint64_t tick_us = now_us - ticked_us_;
        const bool full = now.left > rate_ * (tick_us + round_trip_us) / 1'000'000;
        const bool moved = now.acknowledged != before_.acknowledged;
        if (moved) {
            const uint64_t span_us = now_us - moved_us_;
            const uint64_t drained = per_second(now.acknowledged - before_.acknowledged, span_us);
            const bool was_data =
                now.zeroes - before_.zeroes <= now.acknowledged - before_.acknowledged;
            if (drained > rate_ || (full && was_data)) {
                // By time: else a second in which one answer came would count as a tenth of a
                // second in which many did.
                rate_ = rate_ == 0 ? drained
                                   : (rate_ * memory_us + drained * span_us) / (memory_us + span_us);
            }
        }
        if (moved || !full) {
            moved_us_ = now_us;
        }
        const uint64_t written =
            now.made > before_.made ? per_second(now.made - before_.made, tick_us) : 0;
        write_rate_ = (7 * write_rate_ + written) / 8;
        before_ = now;
        ticked_us_ = now_us;
    }

    uint64_t bytes_per_s() const { return rate_; }
    uint64_t write_bytes_per_s() const { return write_rate_; }
    // There is work, and nothing was answered for longer than a few frames take.
    bool stalled() const {
        const uint64_t frames_us = 3 * frame_bytes_ * 1'000'000 / std::max<uint64_t>(rate_, 1);
        return ticked_us_ - moved_us_ > std::clamp(frames_us, shortest_stall_us, longest_stall_us);
    }
    // After a pause of which nothing is known, such as between two sessions.
    void resume() { ticked_us_ = 0; }

private:
    static constexpr uint64_t memory_us = 700'000;
    static constexpr uint64_t shortest_stall_us = 1'000'000, longest_stall_us = 30'000'000;

    static uint64_t per_second(uint64_t bytes, uint64_t us) {
        return bytes * 1'000'000 / std::max<uint64_t>(us, 1);
    }
    void begin(const Totals& now, uint64_t now_us) {
        before_ = now;
        ticked_us_ = moved_us_ = now_us;
    }

    const uint64_t frame_bytes_;
    uint64_t rate_ = 0, write_rate_ = 0;
    Totals before_; // at the last tick
    uint64_t ticked_us_ = 0;
    uint64_t moved_us_ = 0; // when something was acknowledged last, or the link had nothing to do
};

} // namespace drover
