// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/edge_lock.h"

#include <algorithm>

namespace drover {

EdgeLock::Guard EdgeLock::take(Extent blocks, bool rewrites) {
    std::unique_lock lock(mutex_);
    const auto self = holders_.insert(holders_.end(), Holder{blocks, rewrites});
    const auto free = [&] {
        return std::none_of(holders_.begin(), self, [&](const Holder& earlier) {
            return (rewrites || earlier.rewrites) && earlier.blocks.overlaps(blocks);
        });
    };
    ++waiting_;
    gone_.wait(lock, free);
    --waiting_;
    return {*this, self};
}

void EdgeLock::release(std::list<Holder>::iterator holder) {
    const std::lock_guard lock(mutex_);
    holders_.erase(holder);
    if (waiting_ > 0) {
        gone_.notify_all();
    }
}

} // namespace drover
