// SPDX-License-Identifier: GPL-2.0-or-later
// Over how many connections a stream goes: more than it began with where losses that say nothing of
// a full link hold each of them back (a loss-based TCP gets bandwidth in proportion to
// 1 / sqrt(loss) per connection: Mathis et al., "The Macroscopic Behavior of the TCP Congestion
// Avoidance Algorithm", CCR 27(3), 1997). On a link that is full others would only take turns at
// losing, so what does not make the stream faster is the end of it. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

namespace drover {

// Not thread-safe.
class ConnectionCount {
public:
    struct Totals {
        uint64_t answered_bytes = 0;              // since the start
        uint64_t segments = 0, retransmitted = 0; // of the connections that there are; may shrink
    };

    explicit ConnectionCount(unsigned most) : most_(most) {}

    // At each tick. held_back: there was more to send than the connections took, and no limit of
    // our own. How many more to make now, of so many; they count from the next tick on.
    unsigned more(const Totals& now, bool held_back, unsigned connections, uint64_t now_us) {
        if (began_us_ == 0 || !held_back || now.segments < begin_.segments) {
            restart(now, now_us); // only a stream that was busy all the time says something
            return 0;
        }
        const uint64_t elapsed_us = now_us - began_us_;
        const uint64_t answered = now.answered_bytes - begin_.answered_bytes;
        if (elapsed_us < shortest_us || (answered < enough_bytes && elapsed_us < longest_us)) {
            return 0;
        }
        const uint64_t rate = answered * 1'000'000 / elapsed_us;
        const uint64_t sent = now.segments - begin_.segments;
        const uint64_t again =
            now.retransmitted - std::min(now.retransmitted, begin_.retransmitted);
        restart(now, now_us);
        if (warming_up_) {
            warming_up_ = false; // they had to find their pace first
            return 0;
        }
        settled_ = settled_ || (tried_rate_ != 0 && rate * 10 < tried_rate_ * 11);
        if (settled_ || connections >= most_ || again * lossy < sent) {
            return 0;
        }
        tried_rate_ = rate;
        warming_up_ = true;
        return std::min(connections, most_ - connections);
    }

private:
    // Losses come in clusters, and answers in frames: what a rate is told from.
    static constexpr uint64_t shortest_us = 2'000'000, longest_us = 10'000'000,
                              enough_bytes = 4 << 20;
    static constexpr uint64_t lossy = 1000; // one segment in so many is sent again, at least

    void restart(const Totals& now, uint64_t now_us) {
        begin_ = now;
        began_us_ = now_us;
    }

    const unsigned most_;
    Totals begin_;
    uint64_t began_us_ = 0;
    uint64_t tried_rate_ = 0; // bytes/s, before the last ones came; 0: none did
    bool warming_up_ = false, settled_ = false;
};

} // namespace drover
