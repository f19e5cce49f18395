// SPDX-License-Identifier: GPL-2.0-or-later
// One FIFO queue over byte ranges: a range is held once nothing before it in
// the queue overlaps it. Taken whole, so there are no deadlocks, and in order,
// so nobody starves. Pure: it grants, somebody else waits.
#pragma once

#include "common/units.h"

#include <list>
#include <vector>

namespace drover {

// Not thread-safe: the caller holds its own mutex.
class RangeLock {
public:
    // granularity: ranges are rounded out to it (bytes, a power of two): neighbours below the
    // larger logical block size of the two sides would race in a read-modify-write there.
    explicit RangeLock(uint64_t granularity) : granularity_(granularity) {}

    struct Entry {
        Extent range;
        bool granted = false;
        void* waiter = nullptr; // the caller's
    };
    using Ticket = std::list<Entry>::iterator;

    // Joins the queue; ticket->granted says whether it holds its range already.
    Ticket acquire(Extent range, void* waiter = nullptr);
    // Gives the range back; appends the waiters of those that hold theirs now.
    void release(Ticket ticket, std::vector<void*>& granted);

    bool empty() const { return queue_.empty(); }

private:
    bool blocked(Ticket ticket);

    uint64_t granularity_;
    std::list<Entry> queue_; // oldest first
    std::list<Entry> spare_; // entries to use again
};

} // namespace drover
