// SPDX-License-Identifier: GPL-2.0-or-later
// How one process asks another to do something: what is asked runs there, whether or not
// anybody lives to hear the answer.
#pragma once

#include "test/sim/world.h"

namespace drover::sim {

template <typename Result>
struct Answer {
    std::optional<Result> result;
    std::optional<Error> error;
    bool done = false;
};
template <>
struct Answer<void> {
    std::optional<Error> error;
    bool done = false;
};

template <typename Result>
Task<> answer_with(std::shared_ptr<Answer<Result>> answer, Task<Result> work) {
    try {
        if constexpr (std::is_void_v<Result>) {
            co_await work;
        } else {
            answer->result = co_await work;
        }
    } catch (const Error& error) {
        answer->error = error;
    }
    answer->done = true;
}

// `callee` does `work` for somebody at the site `from`. Throws its Error; Error(peer) if the callee
// dies or can't be reached, Error(timeout): in both cases it may be done all the same, or still
// come to it.
template <typename Callee, typename Result>
Task<Result>
ask(World& world, size_t from, std::weak_ptr<Callee> callee, Task<Result> work, uint64_t patience) {
    const auto answer = std::make_shared<Answer<Result>>();
    const uint64_t deadline = world.now() + patience;
    std::shared_ptr<Callee> there = callee.lock();
    if (!there) {
        throw Error(ErrorKind::peer, "nobody is there", ECONNREFUSED);
    }
    const size_t site = there->site();
    there.reset();
    const auto far = [&] { return site == from || (!world.partitioned && world.hosts[site].up); };
    const auto left = [&] { return deadline - std::min(deadline, world.now()); };
    if (site != from) {
        co_await world.pause(world.arrival() - world.now());
    }
    if (!co_await world.until(far, left())) {
        throw Error(ErrorKind::timeout, "no connection", ETIMEDOUT);
    }
    there = callee.lock();
    if (!there) {
        throw Error(ErrorKind::peer, "nobody is there any more", ECONNREFUSED);
    }
    world.spawn(there->owner, answer_with(answer, std::move(work)));
    there.reset();
    const auto over = [&] { return far() && (answer->done || callee.expired()); };
    if (!co_await world.until(over, left())) {
        throw Error(ErrorKind::timeout, "no answer", ETIMEDOUT);
    }
    if (site != from) {
        co_await world.pause(world.arrival() - world.now());
    }
    if (!answer->done) {
        throw Error(ErrorKind::peer, "it has died", ENOTCONN);
    }
    if (answer->error) {
        throw *answer->error;
    }
    if constexpr (!std::is_void_v<Result>) {
        co_return std::move(*answer->result);
    }
}

} // namespace drover::sim
