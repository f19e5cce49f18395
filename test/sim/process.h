// SPDX-License-Identifier: GPL-2.0-or-later
// A process whose code is asio's coroutines: the real ones of migrator/, which wait only for
// actors of the simulation. It has an event loop of its own, which goes on in the turns of
// those actors; so the seed alone decides what happens.
#pragma once

#include "migrator/async.h"
#include "test/sim/call.h"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>

namespace drover::sim {

class Process {
public:
    Process(World& its_world, size_t its_site)
        : world(its_world), owner(its_world.new_owner()), site_(its_site),
          loop_(std::make_unique<asio::io_context>(1)) {}
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;

    World& world;
    const Scheduler::Owner owner;
    size_t site() const { return site_; }

    // For its coroutines: `work` as an actor of this process. It goes on where the coroutine is
    // cancelled meanwhile, which throws Error(cancelled).
    template <typename Result>
    asio::awaitable<Result> wait(Task<Result> work) {
        const auto state = std::make_shared<State<Result>>(loop_->get_executor());
        world.spawn(owner, finish(state, std::move(work)));
        while (!state->answer->done) {
            co_await state->changed.wait_until(no_deadline);
        }
        if (state->answer->error) {
            throw Error(*state->answer->error);
        }
        if constexpr (!std::is_void_v<Result>) {
            co_return std::move(*state->answer->result);
        }
    }

    // For its actors: a coroutine, to its end.
    template <typename Result>
    Task<Result> run(asio::awaitable<Result> work) {
        const auto ended = std::make_shared<Ended<Result>>();
        if constexpr (std::is_void_v<Result>) {
            const auto end = [ended](std::exception_ptr failure) {
                ended->failure = failure;
                ended->done = true;
            };
            asio::co_spawn(*loop_, std::move(work), end);
        } else {
            const auto end = [ended](std::exception_ptr failure, Result result) {
                ended->failure = failure;
                ended->result = std::move(result);
                ended->done = true;
            };
            asio::co_spawn(*loop_, std::move(work), end);
        }
        go_on();
        const auto done = [ended] { return ended->done; };
        co_await world.until(done);
        if (ended->failure) {
            std::rethrow_exception(ended->failure);
        }
        if constexpr (!std::is_void_v<Result>) {
            co_return std::move(ended->result);
        }
    }

protected:
    ~Process() { end(); }
    // Before what its coroutines use: they are dropped where they stand.
    void end() {
        world.kill(owner);
        loop_.reset();
    }

private:
    template <typename Result>
    struct State {
        explicit State(const asio::any_io_executor& executor) : changed(executor) {}
        std::shared_ptr<Answer<Result>> answer = std::make_shared<Answer<Result>>();
        Notifier changed;
    };
    struct EndedBase {
        bool done = false;
        std::exception_ptr failure;
    };
    template <typename Result>
    struct Ended : EndedBase {
        Result result{};
    };

    template <typename Result>
    Task<> finish(std::shared_ptr<State<Result>> state, Task<Result> work) {
        co_await answer_with(state->answer, std::move(work));
        state->changed.notify();
        go_on();
    }
    void go_on() {
        loop_->restart();
        loop_->poll();
    }

    const size_t site_;
    std::unique_ptr<asio::io_context> loop_;
};

template <>
struct Process::Ended<void> : EndedBase {};

} // namespace drover::sim
