// SPDX-License-Identifier: GPL-2.0-or-later
// The destination's half of a stream, as in replica.cpp; and any NBD server, which does
// requests side by side in any order.
#pragma once

#include "nbd-proxy/core/applier.h"
#include "test/sim/stream.h"

#include <functional>

namespace drover::sim {

// What has to be durable before the frame that brings it is answered: steps of the record.
struct ReplicaEvents {
    std::function<Task<>(StreamId)> session;
    std::function<Task<>(Lsn)> base;
    std::function<Task<>(bool)> consistency;
    std::function<Task<>(Lsn, TokenHash)> handover;
    std::function<Task<>()> voided;
};

class Replica : public std::enable_shared_from_this<Replica> {
public:
    Replica(World& world,
            Disk& disk,
            Scheduler::Owner owner,
            MigrationId migration,
            uint64_t generation,
            StreamId largest,
            ReplicaEvents events);

    const MigrationId migration;
    void serve(ConnectionPtr connection);
    // What `state` says, once no frame of an older session is being applied.
    struct State {
        Lsn applied, durable;
        uint64_t instance = 0;
    };
    Task<State> state() { return state_when_ready(shared_from_this()); }
    // No frame is taken from here on; returns when none is being applied.
    Task<> close();
    bool at_rest() const { return !applier_.anything_applying(); }
    // A frame was applied in part, and has not been sent again.
    bool torn() const { return torn_ > applier_.applied(); }
    // ... and the record could not be told.
    bool unmarked() const { return unmarked_; }
    StreamId stream() const { return applier_.stream(); }
    // Of the present session.
    bool based() const { return based_ == applier_.stream(); }
    Lsn applied() const { return applier_.applied(); }

private:
    // These run on when another replica takes this one's place: `self` keeps it.
    Task<State> state_when_ready(std::shared_ptr<Replica> self);
    Task<> read(std::shared_ptr<Replica> self, ConnectionPtr connection);
    Task<> work(std::shared_ptr<Replica> self, ConnectionPtr connection, Message message);
    Task<> apply(const Message& message);
    Task<> open_session(FrameHeader header);
    Task<> run_ops(const DecodedFrame& frame);
    Task<> make_durable(Lsn up_to);
    Task<> flush_image();

    World& world_;
    Disk& disk_;
    const Scheduler::Owner owner_;
    const ReplicaEvents events_;
    Applier applier_;
    bool closed_ = false, session_busy_ = false;
    unsigned flushing_ = 0;
    uint64_t openings_ = 0; // steps of sessions that were opened
    int failure_ = 0;       // errno of what failed in the present session
    Lsn torn_;
    StreamId based_; // the last session that brought a base
    bool unmarked_ = false;
};

// A frame as requests of any NBD server, which answers when all of them are done.
void serve_plain(World& world, Disk& disk, const ConnectionPtr& connection, Frame& frame);

} // namespace drover::sim
