// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/tracked.h"

namespace drover {
namespace {

struct Waiter {
    std::condition_variable granted;
};

} // namespace

Tracked::Range::Range(Tracked& tracked, Extent range) : tracked_(tracked) {
    Waiter waiter;
    Lock lock(tracked_.mutex);
    ticket_ = tracked_.source.locks().acquire(range, &waiter);
    waiter.granted.wait(lock, [&] { return ticket_->granted; });
}

Tracked::Range::~Range() {
    {
        const std::lock_guard lock(tracked_.mutex);
        // Notified under the mutex: a waiter lives on the stack of the thread that it wakes.
        std::vector<void*> granted;
        tracked_.source.locks().release(ticket_, granted);
        for (void* waiter : granted) {
            static_cast<Waiter*>(waiter)->granted.notify_one();
        }
        tracked_.source.settle(monotonic_us());
    }
    tracked_.wake();
}

} // namespace drover
