// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/async.h"

#include <optional>
#include <thread>

#include <asio/bind_cancellation_slot.hpp>
#include <asio/cancellation_signal.hpp>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <doctest/doctest.h>

#include <unistd.h>

using namespace drover;

namespace {

struct Result {
    bool over = false;
    std::optional<Error> error;
};

// Runs it to its end; stop_after: cancelled then.
Result run(asio::io_context& context,
           asio::awaitable<void> task,
           std::optional<milliseconds> stop_after = std::nullopt) {
    Result result;
    asio::cancellation_signal stop;
    asio::steady_timer timer(context);
    if (stop_after) {
        timer.expires_after(*stop_after);
        timer.async_wait([&](asio::error_code) { stop.emit(asio::cancellation_type::terminal); });
    }
    auto done = asio::bind_cancellation_slot(stop.slot(), [&](std::exception_ptr failure) {
        result.over = true;
        try {
            if (failure) {
                std::rethrow_exception(failure);
            }
        } catch (const Error& error) {
            result.error = error;
        }
    });
    asio::co_spawn(context, std::move(task), std::move(done));
    context.run_for(milliseconds(5000));
    return result;
}

asio::awaitable<void> wait_long(int& ended) {
    struct Count {
        int& ended;
        ~Count() { ++ended; }
    } count{ended};
    const milliseconds hour(3600 * 1000);
    co_await sleep_for(hour);
}

asio::awaitable<void> fail_soon() {
    const milliseconds soon(5);
    co_await sleep_for(soon);
    throw Error(ErrorKind::io, "broken");
}

asio::awaitable<void> finish_soon(int& finished) {
    const milliseconds soon(30);
    co_await sleep_for(soon);
    ++finished;
}

} // namespace

TEST_CASE("all: who fails first ends the others, and nothing is left running") {
    asio::io_context context(1);
    int ended = 0;
    std::vector<asio::awaitable<void>> tasks;
    tasks.push_back(wait_long(ended));
    tasks.push_back(fail_soon());
    tasks.push_back(wait_long(ended));
    const Result result = run(context, all(std::move(tasks)));
    REQUIRE(result.error);
    CHECK(std::string(result.error->what()) == "broken");
    CHECK(ended == 2);
}

TEST_CASE("all: a cancellation ends every one of them") {
    asio::io_context context(1);
    int ended = 0;
    std::vector<asio::awaitable<void>> tasks;
    tasks.push_back(wait_long(ended));
    tasks.push_back(wait_long(ended));
    const Result result = run(context, all(std::move(tasks)), milliseconds(20));
    REQUIRE(result.error);
    CHECK(result.error->kind() == ErrorKind::cancelled);
    CHECK(ended == 2);
}

TEST_CASE("all: of nothing returns; all_to_the_end lets the others end") {
    asio::io_context context(1);
    CHECK(run(context, all({})).over);
    context.restart();
    int finished = 0;
    std::vector<asio::awaitable<void>> tasks;
    tasks.push_back(fail_soon());
    tasks.push_back(finish_soon(finished));
    const Result result = run(context, all_to_the_end(std::move(tasks)));
    REQUIRE(result.error);
    CHECK(std::string(result.error->what()) == "broken");
    CHECK(finished == 1);
}

TEST_CASE("on_a_thread: what it throws comes through, and a cancellation waits for its end") {
    asio::io_context context(1);
    std::function<void()> broken = [] { throw Error(ErrorKind::io, "no disk"); };
    const Result failed = run(context, on_a_thread(broken));
    REQUIRE(failed.error);
    CHECK(std::string(failed.error->what()) == "no disk");
    context.restart();
    bool worked = false;
    std::function<void()> slow = [&worked] {
        std::this_thread::sleep_for(milliseconds(60));
        worked = true;
    };
    const Result cancelled = run(context, on_a_thread(slow), milliseconds(10));
    REQUIRE(cancelled.error);
    CHECK(cancelled.error->kind() == ErrorKind::cancelled);
    CHECK(worked);
}

namespace {

asio::awaitable<void> expect_readable(int fd, bool expected) {
    const Deadline deadline = Clock::now() + milliseconds(30);
    const bool readable = co_await wait_readable(fd, deadline);
    if (readable != expected) {
        throw Error(ErrorKind::state, "wait_readable: the other way round");
    }
}

} // namespace

TEST_CASE("wait_readable: by its deadline or earlier, and the descriptor stays the caller's") {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    asio::io_context context(1);
    CHECK(!run(context, expect_readable(ends[0], false)).error);
    REQUIRE(::write(ends[1], "x", 1) == 1);
    context.restart();
    CHECK(!run(context, expect_readable(ends[0], true)).error);
    char byte = 0;
    CHECK(::read(ends[0], &byte, 1) == 1);
    ::close(ends[0]);
    ::close(ends[1]);
}
