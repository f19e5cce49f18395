// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/job.h"

#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>

namespace drover {

Job::Job(asio::any_io_executor executor, std::function<void()> work, std::function<void()> stop)
    : stop_(std::move(stop)), state_(std::make_shared<State>(executor)) {
    auto guard = asio::make_work_guard(executor);
    thread_ = std::thread([state = state_, guard, executor, task = std::move(work)] {
        std::exception_ptr failure;
        try {
            task();
        } catch (...) {
            failure = std::current_exception();
        }
        asio::post(executor, [state, failure] {
            state->failure = failure;
            state->ended = true;
            state->changed.notify();
        });
    });
}

Job::~Job() {
    stop_();
    thread_.join();
}

asio::awaitable<bool> Job::wait(Deadline deadline) {
    const auto state = state_;
    while (!state->ended) {
        const bool woken = co_await state->changed.wait_until(deadline);
        if (!woken) {
            co_return state->ended;
        }
    }
    co_return true;
}

void Job::rethrow() const {
    if (state_->failure) {
        std::rethrow_exception(state_->failure);
    }
}

asio::awaitable<bool> Job::end(Deadline deadline) {
    stop_();
    const bool over = co_await wait(deadline);
    co_return over;
}

} // namespace drover
