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

bool Tracked::pace(Throttle::ClientId client, Extent where) {
    if (!throttling()) {
        return false;
    }
    Lock lock(mutex);
    const uint64_t start_us = monotonic_us();
    Throttle::Wait wait;
    try {
        wait = throttle.wait_for(client, where.offset, source.new_work(where), start_us);
    } catch (const std::bad_alloc&) {
        // Then it does not wait.
    }
    if (wait.us != 0) {
        unthrottled_.wait_for(
            lock, std::chrono::microseconds(wait.us), [&] { return !throttle.active(); });
        throttle.waited(client, wait, monotonic_us() - start_us);
    }
    return wait.us != 0;
}

void Tracked::release_throttle() {
    const std::lock_guard lock(mutex);
    throttle.release();
    throttling_ = false;
    unthrottled_.notify_all();
}

void Tracked::tick_throttle(const Throttle::Load& load, uint64_t now_us) {
    const std::lock_guard lock(mutex);
    try {
        throttle.tick(load, now_us);
    } catch (const std::bad_alloc&) {
        throttle.release();
    }
    throttling_ = throttle.active();
    if (!throttle.active()) {
        unthrottled_.notify_all();
    }
}

} // namespace drover
