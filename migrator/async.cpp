// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/async.h"

#include <exception>
#include <memory>
#include <thread>

#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/error.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/redirect_error.hpp>
#include <asio/this_coro.hpp>
#include <asio/use_awaitable.hpp>

#include <fcntl.h>

namespace drover {

void Notifier::notify() {
    ++notified_;
    for (asio::steady_timer* waiter : waiters_) {
        waiter->cancel();
    }
}

asio::awaitable<bool> Notifier::wait_until(Deadline deadline) {
    asio::steady_timer timer(executor_, deadline);
    const uint64_t before = notified_;
    const auto place = waiters_.insert(waiters_.end(), &timer);
    asio::error_code error;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
    waiters_.erase(place);
    if (notified_ != before) {
        co_return true;
    }
    if (error) {
        throw Error(ErrorKind::cancelled, "interrupted");
    }
    co_return false;
}

void throw_timeout(const std::string& what, milliseconds waited) {
    throw Error(ErrorKind::timeout,
                fmt::format("{}: nothing after {:.1f} s", what, waited.count() / 1000.0));
}

asio::awaitable<void> sleep_for(milliseconds time) {
    const auto executor = co_await asio::this_coro::executor;
    Notifier never(executor);
    const Deadline deadline = Clock::now() + time;
    co_await never.wait_until(deadline);
}

asio::awaitable<bool> wait_readable(int fd, Deadline deadline) {
    struct State {
        explicit State(const asio::any_io_executor& executor, int own)
            : descriptor(executor, own), changed(executor) {}
        asio::posix::stream_descriptor descriptor;
        Notifier changed;
        bool ready = false;
    };
    const auto executor = co_await asio::this_coro::executor;
    const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
        throw_errno("dup");
    }
    const auto state = std::make_shared<State>(executor, own);
    struct Close { // lets the handler go, whichever way this ends
        State& state;
        ~Close() {
            asio::error_code ignored;
            state.descriptor.close(ignored);
        }
    } close{*state};
    state->descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                                 [state](asio::error_code error) {
                                     state->ready = !error;
                                     state->changed.notify();
                                 });
    co_await state->changed.wait_until(deadline);
    co_return state->ready;
}

asio::awaitable<void> on_a_thread(std::function<void()> work) {
    const auto executor = co_await asio::this_coro::executor;
    Notifier changed(executor);
    bool ended = false;
    std::exception_ptr failure;
    // Keeps the event loop alive until the thread has reported to it.
    auto guard = asio::make_work_guard(executor);
    std::thread thread([&] {
        std::exception_ptr thrown;
        try {
            work();
        } catch (...) {
            thrown = std::current_exception();
        }
        asio::post(executor, [&ended, &failure, &changed, thrown] {
            failure = thrown;
            ended = true;
            changed.notify();
        });
    });
    bool cancelled = false;
    while (!ended) {
        try {
            co_await changed.wait_until(no_deadline);
        } catch (const std::exception&) { // ours, or asio's where it came between two waits
            cancelled = true;
        }
        if (cancelled) {
            co_await asio::this_coro::reset_cancellation_state();
        }
    }
    thread.join();
    if (failure) {
        std::rethrow_exception(failure);
    }
    if (cancelled) {
        throw Error(ErrorKind::cancelled, "interrupted");
    }
}

namespace {

struct Group {
    explicit Group(const asio::any_io_executor& executor) : changed(executor) {}

    Notifier changed;
    size_t running = 0;
    bool stop_on_failure = false;
    std::exception_ptr first;
    std::vector<std::unique_ptr<asio::cancellation_signal>> signals;

    void stop() {
        for (const auto& signal : signals) {
            signal->emit(asio::cancellation_type::terminal);
        }
    }
    void ended(std::exception_ptr failure) {
        --running;
        if (failure && !first) {
            first = failure;
            if (stop_on_failure) {
                stop();
            }
        }
        changed.notify();
    }
};

asio::awaitable<void> run_group(std::vector<asio::awaitable<void>> tasks, bool stop_on_failure) {
    const auto executor = co_await asio::this_coro::executor;
    // Shared with the completion handlers, which may run after an io_context was stopped.
    const auto group = std::make_shared<Group>(executor);
    group->stop_on_failure = stop_on_failure;
    group->running = tasks.size();
    for (auto& task : tasks) {
        group->signals.push_back(std::make_unique<asio::cancellation_signal>());
        auto done = asio::bind_cancellation_slot(
            group->signals.back()->slot(),
            [group](std::exception_ptr failure) { group->ended(failure); });
        asio::co_spawn(executor, std::move(task), std::move(done));
    }
    while (group->running > 0) {
        bool cancelled = false;
        try {
            co_await group->changed.wait_until(no_deadline);
        } catch (const std::exception&) { // ours, or asio's where it came between two waits
            cancelled = true;
        }
        if (cancelled) {
            co_await asio::this_coro::reset_cancellation_state();
            if (!group->first) {
                group->first = std::make_exception_ptr(Error(ErrorKind::cancelled, "interrupted"));
            }
            group->stop();
        }
    }
    if (group->first) {
        std::rethrow_exception(group->first);
    }
}

} // namespace

asio::awaitable<void> all(std::vector<asio::awaitable<void>> tasks) {
    return run_group(std::move(tasks), true);
}

asio::awaitable<void> all_to_the_end(std::vector<asio::awaitable<void>> tasks) {
    return run_group(std::move(tasks), false);
}

} // namespace drover
