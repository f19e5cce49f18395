// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/scheduler.h"

#include <algorithm>

namespace drover::sim {

void Scheduler::spawn(Owner owner, Task<> task) {
    const std::coroutine_handle<> leaf = task.handle();
    actors_.push_back({owner, std::move(task), leaf});
}

void Scheduler::kill(Owner owner) {
    if (running_ != nullptr && running_->owner == owner) {
        running_->killed = true; // it can't be destroyed while it runs
    }
    // What their locals' destructors do may spawn others.
    std::vector<Actor> killed;
    for (size_t i = actors_.size(); i-- > 0;) {
        if (actors_[i].owner == owner) {
            killed.push_back(std::move(actors_[i]));
            actors_.erase(actors_.begin() + static_cast<ptrdiff_t>(i));
        }
    }
}

void Scheduler::wait(std::coroutine_handle<> leaf,
                     uint64_t wake,
                     bool (*test)(const void*),
                     const void* tested) {
    running_->leaf = leaf;
    running_->wake = wake;
    running_->test = test;
    running_->tested = tested;
}

size_t Scheduler::pick() {
    if (actors_.empty()) {
        throw Stuck();
    }
    // Mostly there is one soon.
    for (int i = 0; i < 4; ++i) {
        const size_t index = random.below(actors_.size());
        if (ready(actors_[index])) {
            return index;
        }
    }
    for (;;) {
        ready_.clear();
        uint64_t next = never;
        for (size_t i = 0; i < actors_.size(); ++i) {
            if (ready(actors_[i])) {
                ready_.push_back(i);
            }
            next = std::min(next, actors_[i].wake);
        }
        if (!ready_.empty()) {
            return ready_[random.below(ready_.size())];
        }
        if (next == never) {
            throw Stuck();
        }
        clock_ = next;
    }
}

void Scheduler::step() {
    const size_t index = pick();
    ++turns_;
    ++clock_;
    // Moved out of the way: an actor may spawn others, or end them.
    Actor actor = std::move(actors_[index]);
    if (index + 1 != actors_.size()) {
        actors_[index] = std::move(actors_.back());
    }
    actors_.pop_back();
    running_ = &actor;
    actor.leaf.resume();
    running_ = nullptr;
    if (actor.root.done()) {
        actor.root.rethrow();
    } else if (!actor.killed) {
        actors_.push_back(std::move(actor));
    }
}

} // namespace drover::sim
