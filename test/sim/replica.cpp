// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/replica.h"

#include "test/sim/plugin.h"

namespace drover::sim {
namespace {

[[noreturn]] void refuse(const std::string& why) {
    throw Error(ErrorKind::refused, "frame refused: " + why, EINVAL);
}

[[noreturn]] void shut() {
    throw Error(ErrorKind::state, "the replica takes no frames any more", ESHUTDOWN);
}

} // namespace

Replica::Replica(World& world,
                 Disk& disk,
                 Scheduler::Owner owner,
                 MigrationId migration_id,
                 uint64_t generation,
                 StreamId largest,
                 ReplicaEvents events)
    : migration(migration_id), world_(world), disk_(disk), owner_(owner),
      events_(std::move(events)), applier_(migration_id, generation, largest) {}

void Replica::serve(ConnectionPtr connection) {
    world_.spawn(owner_, read(shared_from_this(), std::move(connection)));
}

// One reads a connection's requests in order; workers do them side by side.
Task<> Replica::read(std::shared_ptr<Replica> self, ConnectionPtr connection) {
    struct End {
        Connection& connection;
        ~End() { connection.served = false; }
    } const end{*connection};
    const auto something = [&] {
        return connection->wire.empty()
                   ? !connection->open
                   : connection->wire.front().arrival <= world_.now() &&
                         connection->workers < world_.plan.workers && !world_.partitioned;
    };
    for (;;) {
        co_await world_.until(something);
        if (connection->wire.empty()) {
            co_return;
        }
        Message message = std::move(connection->wire.front());
        connection->wire.pop_front();
        ++connection->workers;
        world_.spawn(owner_, work(self, connection, std::move(message)));
        co_await world_.turn();
    }
}

Task<> Replica::work([[maybe_unused]] std::shared_ptr<Replica> self,
                     ConnectionPtr connection,
                     Message message) {
    Reply reply{message.frame, message.flushed};
    const bool early =
        world_.breaks(Rule::answer_after_apply) && message.frame != nullptr && !message.durable;
    if (early) {
        reply.arrival = world_.arrival();
        connection->replies.push_back(reply);
    }
    try {
        if (message.flush) {
            const Lsn everything(Scheduler::never);
            co_await make_durable(everything);
        } else {
            co_await apply(message);
        }
        reply.opened = message.frame == nullptr && !message.flush;
    } catch (const Error& error) {
        reply.error = error.sys_errno() != 0 ? error.sys_errno() : EIO;
        reply.why = error.what();
    }
    co_await world_.turn();
    if (!early && connection->open) {
        reply.arrival = world_.arrival();
        connection->replies.push_back(reply);
    }
    --connection->workers;
}

Task<> Replica::open_session(FrameHeader header) {
    const auto free = [this] { return !session_busy_; };
    co_await world_.until(free);
    session_busy_ = true;
    struct Free {
        bool& busy;
        ~Free() { busy = false; }
    } const free_again{session_busy_};
    if (closed_) {
        shut();
    }
    const Applier::Opened opened = applier_.open(header);
    ++openings_;
    failure_ = opened.newer ? 0 : failure_;
    if (!opened.ok) {
        refuse(opened.why);
    }
    if (opened.newer) {
        co_await events_.session(header.stream);
    }
    if (header.base) {
        co_await events_.base(*header.base);
        based_ = header.stream;
    }
}

Task<> Replica::apply(const Message& message) {
    std::string why;
    const auto frame = decode_frame(message.bytes, disk_.image->size(), &why);
    if (!frame) {
        world_.fail("a frame can't be decoded: " + why);
    }
    const FrameHeader& header = frame->header;
    if (header.open) {
        co_await open_session(header);
        co_return;
    }
    auto admission = Applier::Admission::wait;
    const auto decided = [&] {
        admission = applier_.admit(header, &why);
        return closed_ || admission != Applier::Admission::wait;
    };
    if (!decided()) {
        world_.hit(Probe::frame_waited);
        co_await world_.until(decided);
    }
    if (closed_) {
        shut();
    }
    if (admission == Applier::Admission::refused) {
        if (header.stream != applier_.stream()) {
            world_.hit(Probe::stale_frame);
        } else if (failure_ != 0) {
            throw Error(ErrorKind::io, "frame not applied: " + why, failure_);
        }
        refuse(why);
    }
    applier_.started(header);
    int failed = 0;
    try {
        co_await run_ops(*frame);
    } catch (const Error& error) {
        failed = error.sys_errno() != 0 ? error.sys_errno() : EIO;
        why = error.what();
    }
    if (failed != 0) {
        world_.hit(Probe::frame_failed);
        torn_ = std::max(torn_, Lsn(header.next.v - 1));
        try {
            co_await events_.consistency(false);
        } catch (const Error&) {
            unmarked_ = true;
        }
        applier_.failed(header);
        if (failure_ == 0 && header.stream == applier_.stream()) {
            failure_ = failed;
        }
        throw Error(ErrorKind::io, why, failed);
    }
    world_.trace("{}: frame [{}, {}) of session {} applied",
                 disk_.name(),
                 header.first.v,
                 header.next.v,
                 header.stream.session);
    applier_.finished(header);
    if (message.durable) {
        const Lsn last(header.next.v - 1);
        const auto reached = [&] {
            return closed_ || applier_.stream() != header.stream || failure_ != 0 ||
                   applier_.applied() >= last;
        };
        co_await world_.until(reached);
        if (closed_) {
            shut();
        }
        if (applier_.stream() != header.stream) {
            refuse("its session has ended");
        }
        if (applier_.applied() < last) {
            throw Error(ErrorKind::io, "a frame before this one was not applied", failure_);
        }
        co_await make_durable(last);
    }
}

Task<> Replica::run_ops(const DecodedFrame& frame) {
    const std::byte* data = frame.data.data();
    Lsn lsn = frame.header.first;
    for (const Op& op : frame.ops) {
        switch (op.type) {
        case OpType::write:
            co_await disk_.write(op.where, data);
            break;
        case OpType::zero:
            co_await disk_.zero(op.where, false);
            break;
        case OpType::trim:
            co_await disk_.zero(op.where, true);
            break;
        case OpType::flush:
            break;
        case OpType::fill:
            world_.fail("a fill, and this disk is not post-copied");
        case OpType::consistent:
            co_await flush_image();
            co_await events_.consistency(true);
            disk_.marked_by = frame.header.stream;
            break;
        case OpType::inconsistent:
            co_await events_.consistency(false);
            break;
        case OpType::handover: {
            co_await flush_image();
            TokenHash hash;
            std::memcpy(hash.data(), data, hash.size());
            co_await events_.handover(lsn, hash);
            disk_.marked_by = frame.header.stream;
            break;
        }
        case OpType::void_:
            co_await events_.voided();
            break;
        }
        data += has_data(op.type) ? op.where.length : 0;
        ++lsn.v;
        co_await world_.turn();
    }
}

Task<> Replica::flush_image() {
    if (!world_.breaks(Rule::sync_before_fua)) {
        co_await disk_.sync(true);
    }
}

Task<> Replica::make_durable(Lsn up_to) {
    if (closed_) {
        shut();
    }
    if (applier_.durable() >= up_to) {
        co_return;
    }
    const Lsn applied = applier_.applied();
    const uint64_t openings = openings_;
    struct Flushing {
        unsigned& count;
        explicit Flushing(unsigned& its_count) : count(its_count) { ++count; }
        ~Flushing() { --count; }
    } const flushing(flushing_);
    co_await flush_image();
    // Above the base of a session that was opened meanwhile, what was flushed is applied again.
    if (openings == openings_) {
        applier_.made_durable(applied);
    }
}

Task<Replica::State> Replica::state_when_ready([[maybe_unused]] std::shared_ptr<Replica> self) {
    const auto done = [this] { return closed_ || !applier_.older_applying(); };
    if (!done()) {
        world_.hit(Probe::state_waited);
        co_await world_.until(done);
    }
    co_return State{applier_.applied(),
                    std::min(applier_.durable(), applier_.applied()),
                    disk_.plugin ? disk_.plugin->instance : 0};
}

Task<> Replica::close() {
    closed_ = true;
    const auto idle = [this] { return !applier_.anything_applying() && flushing_ == 0; };
    co_await world_.until(idle);
}

} // namespace drover::sim
