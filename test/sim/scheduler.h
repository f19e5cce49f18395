// SPDX-License-Identifier: GPL-2.0-or-later
// Takes turns with the actors of a simulation, in an order that a seed decides, and
// keeps their clock: it ticks with each turn, and jumps where everybody waits for it.
#pragma once

#include "test/sim/task.h"

#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

namespace drover::sim {

// Nobody can go on, and no time will change it.
struct Stuck : std::runtime_error {
    Stuck() : std::runtime_error("everybody waits for somebody") {}
};

class Scheduler {
public:
    // Whose actors they are: a process, which ends with all of them at once.
    using Owner = uint64_t;
    static constexpr uint64_t never = std::numeric_limits<uint64_t>::max();

    explicit Scheduler(uint64_t seed) : random(seed) {}

    Random random; // everybody's, since it decides their order

    Owner new_owner() { return ++owners_; }
    void spawn(Owner owner, Task<> task);
    // Its actors are dropped where they stand.
    void kill(Owner owner);
    // One turn of somebody. Throws what it throws, and Stuck.
    void step();

    uint64_t now() const { return clock_; }
    uint64_t turns() const { return turns_; }
    void jump(uint64_t ticks) { clock_ += ticks; }

    // --- for actors, to wait with. Others come first:
    auto turn() { return Pause{*this, 0}; }
    auto pause(uint64_t ticks) { return Pause{*this, clock_ + ticks}; }
    // Until test() is true; it must have a name, since it outlives the statement.
    template <typename Test>
    auto until(const Test& test) {
        return Wait<Test>{*this, test, never};
    }
    // ... or so many ticks have passed. Whether test() is true.
    template <typename Test>
    auto until(const Test& test, uint64_t ticks) {
        return Wait<Test>{*this, test, clock_ + ticks};
    }
    template <typename Test>
    void until(const Test&& test, uint64_t ticks = 0) = delete;

private:
    struct Actor {
        Owner owner = 0;
        Task<> root;
        std::coroutine_handle<> leaf; // where it goes on
        uint64_t wake = 0;
        bool (*test)(const void*) = nullptr;
        const void* tested = nullptr;
        bool killed = false;
    };
    struct Pause {
        Scheduler& scheduler;
        uint64_t wake;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> leaf) const {
            scheduler.wait(leaf, wake, nullptr, nullptr);
        }
        void await_resume() const noexcept {}
    };
    template <typename Test>
    struct Wait {
        Scheduler& scheduler;
        const Test& test;
        uint64_t wake;
        bool await_ready() const { return test(); }
        void await_suspend(std::coroutine_handle<> leaf) const {
            scheduler.wait(
                leaf,
                wake,
                [](const void* it) { return (*static_cast<const Test*>(it))(); },
                &test);
        }
        bool await_resume() const { return test(); }
    };

    void wait(std::coroutine_handle<> leaf,
              uint64_t wake,
              bool (*test)(const void*),
              const void* tested);
    bool ready(const Actor& actor) const {
        return actor.wake <= clock_ || (actor.test != nullptr && actor.test(actor.tested));
    }
    size_t pick();

    std::vector<Actor> actors_;
    std::vector<size_t> ready_; // for pick()
    Actor* running_ = nullptr;
    uint64_t clock_ = 1, turns_ = 0;
    Owner owners_ = 0;
};

} // namespace drover::sim
