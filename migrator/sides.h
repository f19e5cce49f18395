// SPDX-License-Identifier: GPL-2.0-or-later
// What a switchover (switchover.h), a recovery (recovery.h) and the destination's half of both
// (takeover.h) ask of disks, hypervisors and of each other, and nothing more: the real parts
// are the plugins' control sockets, the drivers and the agent; test/sim has simulated ones.
//
// Errors: state and refused say that nothing was done, and why; after any other one (peer, timeout,
// io, cancelled) it may have been done all the same, and only standing() can tell. Each call may be
// made again after it.
#pragma once

#include "migrator/async.h"
#include "migrator/disk_standing.h"
#include "migrator/state_files.h"

#include <string>
#include <string_view>
#include <vector>

namespace drover {

class DiskAtSource {
public:
    virtual ~DiskAtSource() = default;
    virtual const std::string& name() const = 0;
    // Of a disk that is not served any more: it is served again first.
    virtual asio::awaitable<DiskStanding> standing() = 0;

    struct Quiesced {
        std::string id;
        std::string token_hash;
        uint64_t lsn = 0;
    };
    // Returns when the handover is durable at the destination. hold: its client is not paused, the
    // disk holds its writes. token_hash: of the first disk; empty for that one, which makes the
    // token.
    virtual asio::awaitable<Quiesced> quiesce(bool hold, std::string token_hash) = 0;
    // Beside the first disk's quiesce(): the hash of its token, as soon as there is one.
    virtual asio::awaitable<std::string> token_hash() = 0;
    // Durable; the token. first_token: empty for the first disk. On a disk that is fenced already
    // both may be empty.
    virtual asio::awaitable<std::string> fence(std::string quiesce, std::string first_token) = 0;
    virtual asio::awaitable<void> cancel() = 0;
    virtual asio::awaitable<void> unfence(std::string refusal_token) = 0;
    // The operator answers for it that the destination has died: the next generation is this
    // disk's.
    virtual asio::awaitable<void> unfence_by_force() = 0;
    // Another side was made the owner, at that generation, by an operator who took this one for
    // dead: fenced.
    virtual asio::awaitable<void> supersede(uint64_t generation) = 0;
    // Fenced with its client still here: reaches the new owner from now on.
    virtual asio::awaitable<void> forward() = 0;
    // The move is known to be over.
    virtual asio::awaitable<void> finish() = 0;
};

class VmAtSource {
public:
    virtual ~VmAtSource() = default;
    // false: it is not ours to stop, and none of the calls below has anything to do.
    virtual bool has_memory() const = 0;
    // Its operator had paused it before; it is to stay so.
    virtual bool was_paused() const = 0;
    // Paused, with little left: returns when all of it is sent and the hypervisor will write
    // nothing any more.
    virtual asio::awaitable<void> finish_memory() = 0;
    // Its memory is here still.
    virtual asio::awaitable<bool> is_there() = 0;
    // Goes on here as it did before, whatever was begun. Also where it runs already, or is gone.
    // Error(refused): it does not run for a reason of its own, which trying again does not change.
    virtual asio::awaitable<void> resume() = 0;
    // It has moved: ends what is left of it here. Also where nothing is.
    virtual asio::awaitable<void> destroy() = 0;
};

// The destination, as the source's side sees it: all disks and the hypervisor behind one agent.
class DestinationSide {
public:
    virtual ~DestinationSide() = default;
    // Reaches it, with a new agent if the last one is gone, and from then on no other agent acts
    // for this migration. The disks' standings.
    virtual asio::awaitable<std::vector<DiskStanding>> take_over() = 0;
    // Returns when its hypervisor holds the whole memory, paused.
    virtual asio::awaitable<void> loaded() = 0;
    // Every disk, the first one first. run() may be called before it has returned: they are carried
    // out in this order, and run() not at all if this fails.
    virtual asio::awaitable<void> promote(std::string token) = 0;
    virtual asio::awaitable<void> run(bool paused) = 0;
    // Durable, the first disk first; what was made for the migration is removed. The tokens, in the
    // order of the disks. Error(state) where it was promoted and its VM may have run.
    virtual asio::awaitable<std::vector<std::string>> refuse() = 0;
    // The source was forced: what was promoted there is fenced, at that generation, and the VM
    // ended.
    virtual asio::awaitable<void> supersede(uint64_t generation) = 0;
    virtual asio::awaitable<void> finish() = 0;
};

class DiskAtDestination {
public:
    virtual ~DiskAtDestination() = default;
    virtual const std::string& name() const = 0;
    virtual asio::awaitable<DiskStanding> standing() = 0;
    // Durable, and that the VM may have run with it.
    virtual asio::awaitable<void> promote(std::string token) = 0;
    // Promoted, but the VM could not be run and has not: durable.
    virtual asio::awaitable<void> did_not_run() = 0;
    // Durable; the refusal token, empty for a disk that never came to a record of this migration.
    virtual asio::awaitable<std::string> refuse() = 0;
    virtual asio::awaitable<void> finish() = 0;
};

class VmAtDestination {
public:
    virtual ~VmAtDestination() = default;
    // Ready to run: it holds the whole memory, or runs already.
    virtual bool ready() const = 0;
    // false: it is certain that the guest did not run: nothing was told to it, or it has said no.
    virtual bool may_have_run() const = 0;
    virtual asio::awaitable<void> run(bool paused) = 0;
    // Never while it may have run.
    virtual asio::awaitable<void> destroy() = 0;
};

// The journal, as far as the protocol needs it.
class StepLog {
public:
    virtual ~StepLog() = default;
    // Durable when it returns; comes before what it names.
    virtual asio::awaitable<void> step(JournalStep step) = 0;
};

} // namespace drover
