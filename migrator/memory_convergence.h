// SPDX-License-Identifier: GPL-2.0-or-later
// Whether the memory of a guest that runs gets nearer to its end. Pure: told how far it is from
// time to time.
//
// It is sent in passes, each of what was changed during the one before, and within a pass there is
// always less and less to go. So only what a pass begins with says anything; and that nothing at
// all is sent.
#pragma once

#include "migrator/driver.h"

#include <algorithm>
#include <chrono>
#include <limits>

namespace drover {

class MemoryConvergence {
public:
    using Clock = std::chrono::steady_clock;

    // patience: without progress; 0: for ever.
    explicit MemoryConvergence(std::chrono::seconds patience) : patience_(patience) {}

    // True: it has got no nearer for that long.
    bool stalled(const MemoryProgress& now, Clock::time_point at) {
        if (now.passes != pass_) {
            finish_pass(at);
            pass_ = now.passes;
        }
        begun_with_ = std::max(begun_with_, now.remaining_bytes);
        if (now.sent_bytes != sent_bytes_ || sent_at_ == Clock::time_point{}) {
            sent_bytes_ = now.sent_bytes;
            sent_at_ = at;
        }
        return patience_.count() != 0 && (no_nearer_ || at - sent_at_ >= patience_);
    }

private:
    void finish_pass(Clock::time_point at) {
        if (least_ - std::min(least_, begun_with_) >= least_ / 16) {
            least_ = begun_with_;
            nearer_at_ = at;
        }
        no_nearer_ = at - nearer_at_ >= patience_;
        begun_with_ = 0;
    }

    const std::chrono::seconds patience_;
    uint64_t pass_ = 0;
    uint64_t begun_with_ = 0;                               // bytes, the present pass
    uint64_t least_ = std::numeric_limits<uint64_t>::max(); // that one has begun with
    Clock::time_point nearer_at_;
    bool no_nearer_ = false;
    uint64_t sent_bytes_ = 0;
    Clock::time_point sent_at_;
};

} // namespace drover
