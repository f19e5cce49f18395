// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/range_lock.h"

namespace drover {

bool RangeLock::blocked(Ticket ticket) {
    for (auto before = queue_.begin(); before != ticket; ++before) {
        if (before->range.overlaps(ticket->range)) {
            return true;
        }
    }
    return false;
}

RangeLock::Ticket RangeLock::acquire(Extent range, void* waiter) {
    if (spare_.empty()) {
        queue_.emplace_back();
    } else {
        queue_.splice(queue_.end(), spare_, spare_.begin());
    }
    const Ticket ticket = std::prev(queue_.end());
    const uint64_t begin = round_down(range.offset, granularity_);
    *ticket = {{begin, round_up(range.end(), granularity_) - begin}, false, waiter};
    ticket->granted = !blocked(ticket);
    return ticket;
}

void RangeLock::release(Ticket ticket, std::vector<void*>& granted) {
    const Extent freed = ticket->range;
    Ticket later = std::next(ticket);
    spare_.splice(spare_.begin(), queue_, ticket);
    for (; later != queue_.end(); ++later) {
        if (!later->granted && later->range.overlaps(freed) && !blocked(later)) {
            later->granted = true;
            granted.push_back(later->waiter);
        }
    }
}

} // namespace drover
