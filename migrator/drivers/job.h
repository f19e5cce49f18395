// SPDX-License-Identifier: GPL-2.0-or-later
// Work that blocks for long, on a thread of its own beside the event loop.
#pragma once

#include "migrator/async.h"

#include <exception>
#include <functional>
#include <memory>
#include <thread>

namespace drover {

class Job {
public:
    // stop: any thread, more than once; makes `work` end soon. What `work` throws is kept.
    Job(asio::any_io_executor executor, std::function<void()> work, std::function<void()> stop);
    // Stops it and waits for its end.
    ~Job();
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;

    bool ended() const { return state_->ended; }
    // true: it has ended; false: the deadline has passed.
    asio::awaitable<bool> wait(Deadline deadline);
    // After its end.
    void rethrow() const;
    asio::awaitable<bool> end(Deadline deadline);

private:
    struct State {
        explicit State(const asio::any_io_executor& executor) : changed(executor) {}
        Notifier changed;
        bool ended = false;
        std::exception_ptr failure;
    };

    const std::function<void()> stop_;
    const std::shared_ptr<State> state_; // with the handler, which may run after us
    std::thread thread_;
};

} // namespace drover
