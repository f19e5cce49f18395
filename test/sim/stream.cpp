// SPDX-License-Identifier: GPL-2.0-or-later
// Sessions: one after the other, as sender.cpp opens them.
#include "test/sim/stream.h"

#include "test/sim/call.h"
#include "test/sim/plugin.h"

namespace drover::sim {
namespace {

constexpr size_t headroom = 8 * KiB;
constexpr uint64_t answer_limit = 6000;
constexpr uint64_t reconnect_limit = 8000;

bool may_come_back(const Error& error) {
    return error.kind() == ErrorKind::timeout ||
           (error.kind() == ErrorKind::peer && error.sys_errno() != ENOSPC &&
            error.sys_errno() != EINVAL && error.sys_errno() != EROFS);
}

} // namespace

// --- what stands for memory

FrameBuffer TrackedDisk::buffer(size_t capacity) const {
    const auto live = live_bytes;
    *live += capacity;
    const std::shared_ptr<std::byte> memory(new std::byte[headroom + capacity],
                                            [live, capacity](const std::byte* bytes) {
                                                *live -= capacity;
                                                delete[] bytes;
                                            });
    return {memory, headroom, capacity};
}

Bytes TrackedDisk::copy(const std::byte* data, size_t length) const {
    const auto live = live_bytes;
    *live += length;
    const std::shared_ptr<std::byte> memory(new std::byte[length],
                                            [live, length](const std::byte* bytes) {
                                                *live -= length;
                                                delete[] bytes;
                                            });
    std::memcpy(memory.get(), data, length);
    return memory;
}

TrackedDisk::Range::Range(World& world, TrackedDisk& tracked, Extent range)
    : world_(world), tracked_(tracked), ticket_(tracked.source.locks().acquire(range)) {}

TrackedDisk::Range::~Range() {
    std::vector<void*> granted; // they look for themselves
    tracked_.source.locks().release(ticket_, granted);
    tracked_.source.settle(world_.now());
}

// --- sessions

Stream::Stream(World& world, Disk& here, Disk& there, std::shared_ptr<TrackedDisk> tracked)
    : world_(world), here_(here), there_(there), tracked_(std::move(tracked)),
      source_(tracked_->source), owner_(world.new_owner()), links_owner_(world.new_owner()) {}

Stream::~Stream() {
    world_.kill(owner_);
    close_session();
}

Task<> Stream::start() {
    co_await open_session();
    world_.spawn(owner_, keep_up());
}

void Stream::give_up(const std::string& why) {
    if (!failed_) {
        world_.hit(Probe::stream_failed);
        world_.trace("{}: its stream has failed: {}", here_.name(), why);
    }
    failed_ = true;
    error_ = why;
}

Task<> Stream::keep_up() {
    const auto over = [this] {
        return failed_ || cut_ ||
               std::any_of(connections_.begin(), connections_.end(), [this](const auto& each) {
                   return lost(*each);
               });
    };
    for (;;) {
        co_await world_.until(over);
        world_.trace("{}: session {} ends", here_.name(), source_.stream().session);
        close_session();
        if (failed_ || world_.plan.plain) {
            give_up("the link was lost");
            co_return;
        }
        const uint64_t give_up_at = world_.now() + reconnect_limit;
        for (bool again = true; again;) {
            const uint64_t delay = world_.random.chance(50) ? 0 : world_.random.below(100);
            co_await world_.pause(delay);
            std::optional<Error> failure;
            try {
                co_await open_session();
                again = false;
            } catch (const Error& error) {
                failure = error;
            }
            if (failure) {
                close_session();
                if (!may_come_back(*failure) || world_.now() > give_up_at) {
                    give_up(failure->what());
                    co_return;
                }
            }
        }
    }
}

void Stream::close_session() {
    world_.kill(links_owner_);
    for (const ConnectionPtr& connection : connections_) {
        connection->open = false;
        // What was not read yet may be lost, or come late.
        auto& wire = connection->wire;
        wire.resize(world_.random.below(wire.size() + 1));
        uint64_t late = world_.random.chance(30) ? world_.now() : 0;
        for (Message& message : wire) {
            if (message.arrival == Scheduler::never || late > 0) {
                late = std::max(late, world_.now()) + world_.random.below(500);
                message.arrival = late;
            }
        }
    }
    connections_.clear();
    cut_ = silent_ = false;
}

Task<> Stream::greet(ConnectionPtr connection, std::optional<Lsn> base) {
    FrameHeader header;
    header.migration = source_.migration();
    header.stream = source_.stream();
    header.open = true;
    header.base = base;
    Message message;
    message.bytes.resize(frame_header_size);
    encode_frame(message.bytes, header, {});
    post(*connection, std::move(message));
    const auto answered = [&] {
        return lost(*connection) ||
               (!connection->replies.empty() && !world_.partitioned && !silent_ &&
                connection->replies.front().arrival <= world_.now());
    };
    co_await world_.until(answered, answer_limit);
    if (connection->replies.empty()) {
        throw Error(ErrorKind::timeout, "the session was not opened", ETIMEDOUT);
    }
    const Reply reply = connection->replies.front();
    connection->replies.pop_front();
    if (reply.error != 0) {
        throw Error(ErrorKind::peer, reply.why, reply.error);
    }
}

Task<> Stream::open_session() {
    if (world_.plan.plain) {
        for (unsigned i = 0; i < world_.plan.links; ++i) {
            connections_.push_back(std::make_shared<Connection>());
            world_.spawn(links_owner_, link(connections_.back(), false));
        }
        co_return;
    }
    if (!world_.reachable(there_.site)) {
        co_await world_.pause(world_.random.between(1, answer_limit));
        throw Error(ErrorKind::timeout, "no connection", ETIMEDOUT);
    }
    co_await world_.pause(world_.arrival() - world_.now());
    std::shared_ptr<Replica> replica = there_.plugin ? there_.plugin->replica() : nullptr;
    if (!replica) {
        throw Error(ErrorKind::peer, "there is no export 'replica' there", ENOENT);
    }
    const std::weak_ptr<Plugin> process = there_.plugin;
    for (unsigned i = 0; i < world_.plan.links; ++i) {
        connections_.push_back(std::make_shared<Connection>());
        connections_.back()->heard = world_.now();
        replica->serve(connections_.back());
    }
    source_.begin_session(source_.stream().session + 1);
    for (const ConnectionPtr& connection : connections_) {
        co_await greet(connection, std::nullopt);
    }
    const Replica::State state =
        co_await ask(world_, here_.site, process, replica->state(), answer_limit);
    if (replica->migration != source_.migration()) {
        throw Error(ErrorKind::refused, "it serves the replica of another disk", EINVAL);
    }
    replica.reset();
    const bool same = known_instance_ == 0 || known_instance_ == state.instance;
    known_instance_ = state.instance;
    const Lsn base = source_.resume(
        state.applied, state.durable, same || world_.breaks(Rule::notice_another_instance));
    world_.trace("{}: session {}: applied {}, durable {}, {} instance, base {}",
                 here_.name(),
                 source_.stream().session,
                 state.applied.v,
                 state.durable.v,
                 same ? "same" : "other",
                 base.v);
    world_.hit(same ? Probe::session_same : Probe::session_other);
    co_await greet(connections_[0], base);
    bool first = true;
    for (const ConnectionPtr& connection : connections_) {
        world_.spawn(links_owner_, link(connection, std::exchange(first, false)));
    }
    if (source_.limits().compare_first) {
        world_.spawn(links_owner_, compare());
    }
}

} // namespace drover::sim
