// SPDX-License-Identifier: GPL-2.0-or-later
// What an actor of the simulation is written as: a coroutine that waits for others by co_await
// and gives its turn away by what scheduler.h offers.
#pragma once

#include <coroutine>
#include <cstdint>
#include <exception>
#include <optional>
#include <utility>

namespace drover::sim {

template <typename Result = void>
class Task;

namespace detail {

struct PromiseBase {
    std::coroutine_handle<> parent; // who waits for it; null: nobody, it is an actor itself
    std::exception_ptr error;

    struct Back {
        bool await_ready() noexcept { return false; }
        template <typename Promise>
        std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) noexcept {
            const std::coroutine_handle<> parent = self.promise().parent;
            return parent ? parent : std::noop_coroutine();
        }
        void await_resume() noexcept {}
    };
    std::suspend_always initial_suspend() noexcept { return {}; }
    Back final_suspend() noexcept { return {}; }
    void unhandled_exception() { error = std::current_exception(); }
};

template <typename Result>
struct Promise : PromiseBase {
    std::optional<Result> result;
    Task<Result> get_return_object();
    void return_value(Result value) { result = std::move(value); }
    Result take() { return std::move(*result); }
};

template <>
struct Promise<void> : PromiseBase {
    Task<void> get_return_object();
    void return_void() {}
    void take() {}
};

} // namespace detail

// Runs from when it is waited for. Destroying it drops it where it stands, locals included.
template <typename Result>
class [[nodiscard]] Task {
public:
    using promise_type = detail::Promise<Result>;

    explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
    Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Task& operator=(Task&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Task(const Task&) = delete;
    Task& operator=(const Task&) = delete;
    ~Task() {
        if (handle_) {
            handle_.destroy();
        }
    }

    std::coroutine_handle<> handle() const { return handle_; }
    bool done() const { return handle_.done(); }
    void rethrow() const {
        if (handle_.promise().error) {
            std::rethrow_exception(handle_.promise().error);
        }
    }

    bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> parent) noexcept {
        handle_.promise().parent = parent;
        return handle_;
    }
    Result await_resume() {
        rethrow();
        return handle_.promise().take();
    }

private:
    std::coroutine_handle<promise_type> handle_;
};

template <typename Result>
Task<Result> detail::Promise<Result>::get_return_object() {
    return Task<Result>(std::coroutine_handle<Promise<Result>>::from_promise(*this));
}

inline Task<void> detail::Promise<void>::get_return_object() {
    return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

// The same numbers from the same seed, everywhere (SplitMix64).
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t n) { return next() % n; } // n > 0
    uint64_t between(uint64_t least, uint64_t most) { return least + below(most - least + 1); }
    bool chance(unsigned percent) { return below(100) < percent; }
    // For what is rare: n in ten thousand.
    bool rarely(unsigned n) { return below(10'000) < n; }

private:
    uint64_t state_;
};

} // namespace drover::sim
