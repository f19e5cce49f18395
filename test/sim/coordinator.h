// SPDX-License-Identifier: GPL-2.0-or-later
// Whoever moves the VM from its source, or recovers a migration there: the real Switchover and
// Recovery over simulated sides, with what migration.cpp and source_recovery.cpp do around them.
#pragma once

#include "migrator/recovery.h"
#include "test/sim/agent.h"

namespace drover::sim {

class Coordinator final : public Process, public std::enable_shared_from_this<Coordinator> {
public:
    // Of the migration that the world's journal names.
    explicit Coordinator(World& its_world);
    ~Coordinator();

    // One of them, once.
    Task<> migrate();
    // force: the operator answers for it that the destination has died.
    Task<> recover(bool force);
    bool ended() const { return ended_; }

private:
    class Disk;
    class Machine;
    class Peer;

    SwitchoverParts parts();
    Task<> prepare();
    Task<> copy();
    Task<> go_back(bool force);
    Task<> conclude_there();
    Task<> note(JournalStep step);

    size_t to() const { return 1 - site(); }

    std::vector<std::unique_ptr<Disk>> disks_;
    std::unique_ptr<Machine> vm_;
    std::unique_ptr<Peer> peer_;
    Steps steps_;
    bool ended_ = false;
    unsigned troubles_ = 0;
};

} // namespace drover::sim
