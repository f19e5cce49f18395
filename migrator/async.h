// SPDX-License-Identifier: GPL-2.0-or-later
// What the coordinator's and the agent's coroutines wait with. One thread runs
// them all, so nothing here locks. Every wait has a deadline, and ends early
// with Error(cancelled) when its coroutine is cancelled (asio's terminal
// cancellation: how an abort reaches whatever the migration waits for).
#pragma once

#include "common/error.h"

#include <chrono>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include <asio/any_io_executor.hpp>
#include <asio/awaitable.hpp>
#include <asio/steady_timer.hpp>

namespace drover {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
using std::chrono::milliseconds;

// For waits that something else ends: a caller's deadline, or a cancellation.
inline constexpr Deadline no_deadline = Deadline::max();

// A condition variable for coroutines: notify() wakes everybody, the waiters look again.
class Notifier {
public:
    explicit Notifier(asio::any_io_executor executor) : executor_(std::move(executor)) {}
    Notifier(const Notifier&) = delete;
    Notifier& operator=(const Notifier&) = delete;

    void notify();
    // true: notified; false: the deadline has passed. The Notifier must outlive the wait.
    asio::awaitable<bool> wait_until(Deadline deadline);

private:
    asio::any_io_executor executor_;
    std::list<asio::steady_timer*> waiters_;
    uint64_t notified_ = 0;
};

// Throws Error(timeout, "WHAT: nothing after N s") when `deadline` has passed.
[[noreturn]] void throw_timeout(const std::string& what, milliseconds waited);

asio::awaitable<void> sleep_for(milliseconds time);

// true: readable (a pidfd: the process has ended); false: the deadline has passed.
asio::awaitable<bool> wait_readable(int fd, Deadline deadline);

// Runs what blocks (starting a process and waiting for its socket) on a thread of its own, so
// that the event loop goes on. A cancellation waits for its end; what it throws comes through.
// `work` must not touch what the event loop's thread uses.
asio::awaitable<void> on_a_thread(std::function<void()> work);

// Runs all of them at once, returns when all have ended. The first that fails (or a
// cancellation of the caller) cancels the others; its exception is thrown at the end.
asio::awaitable<void> all(std::vector<asio::awaitable<void>> tasks);

// As all(), but nobody is cancelled because another one fails: for clean-up.
asio::awaitable<void> all_to_the_end(std::vector<asio::awaitable<void>> tasks);

} // namespace drover
