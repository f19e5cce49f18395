// SPDX-License-Identifier: GPL-2.0-or-later
// What a migration asks of a hypervisor, at either end. The words are those of a
// migration, none of a particular hypervisor; drivers/ fills them in. All of it
// runs on the one thread of its executor, one call at a time unless it is said otherwise.
// Errors: state (the hypervisor refuses, with its text), peer (it or the other end is
// gone), timeout, cancelled.
#pragma once

#include "migrator/async.h"
#include "migrator/config.h"
#include "migrator/finding.h"
#include "migrator/memory_ways.h"

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace drover {

// Where the memory goes, and how: the destination listens, TLS-PSK.
struct MemoryLink {
    std::string host;
    uint16_t port = 0;
    std::string psk_user;
    std::string psk_key; // hexadecimal
    MemoryWays ways;
};

struct MemoryTuning {
    uint64_t downtime_ms = 0;
    uint64_t max_bandwidth = 0; // bytes/s, 0: unlimited
};

struct MemoryProgress {
    uint64_t total_bytes = 0;
    uint64_t remaining_bytes = 0;
    uint64_t sent_bytes = 0;
    uint64_t passes = 0;
    uint64_t dirty_rate = 0; // bytes/s that the guest changes
    uint64_t send_rate = 0;  // bytes/s
};

// Of the memory of a guest that runs at the destination (post-copy).
enum class MemoryRest {
    none,        // it is all there
    going,       // what it touches first, and all else by and by
    interrupted, // the link has broken: it waits for another one
};

// Whatever of this happens by itself: the guest was powered off, the hypervisor died. Called
// once at most, from the event loop, and not after finish_memory() has returned.
using HypervisorLost = std::function<void(const std::string& what)>;

// What can be told of a VM without touching it (`drover check`).
struct Inspection {
    Findings findings;
    bool kvm = false;      // its processor is the host's, not emulated
    bool host_cpu = false; // and has what this host's has, not a model of its own
};

// The VM at the source, from the first look at it until it is destroyed or goes on.
class OutgoingVm {
public:
    virtual ~OutgoingVm() = default;

    // Finds the running VM; everything else comes after it. Says what is wrong if it can't
    // be migrated as it is. `lost` is called from now on.
    virtual asio::awaitable<void> describe(HypervisorLost lost) = 0;
    // Instead of it: changes nothing, not even what a killed coordinator has left. What keeps it
    // from being inspected is among the findings. values() may follow where there is no problem.
    virtual asio::awaitable<Inspection> inspect() = 0;
    // After it: what does not keep the VM from being moved, and its operator should know before.
    virtual std::vector<std::string> warnings() const { return {}; }
    // After it: what the VM's description is to have besides what its VM file says, by name.
    virtual std::map<std::string, std::string> values() const { return {}; }
    // After it: what another process needs to put the VM back, for a journal.
    virtual nlohmann::json notes() const = 0;
    // Instead of describe(), with the notes of one that has died: false if the VM is not there any
    // more, else cancel() and destroy_source() may follow.
    virtual asio::awaitable<bool> reattach(nlohmann::json notes) = 0;
    // Whether there is memory to move. Without it the VM is not ours to stop: the disks hold its
    // writes during the handover, and each of the calls below does nothing.
    virtual bool has_memory() const = 0;
    // "running", "paused", ...: for people.
    virtual std::string state() const = 0;

    // Throws Error(usage): the memory of this VM can't go that way.
    virtual void require(const MemoryWays& ways) const {
        if (ways != MemoryWays{}) {
            throw Error(ErrorKind::usage,
                        "how the memory goes can be chosen with hypervisor \"qemu\" alone");
        }
    }
    // Memory begins to go, the guest runs on.
    virtual asio::awaitable<void> start_outgoing(MemoryLink link, MemoryTuning tuning) = 0;
    // Beside any other call.
    virtual asio::awaitable<void> tune(MemoryTuning tuning) = 0;
    virtual asio::awaitable<MemoryProgress> progress() = 0;
    // Returns when the guest is paused because what is left fits the downtime. It stays so until
    // finish_memory() or cancel().
    virtual asio::awaitable<void> wait_paused(Deadline deadline) = 0;
    // After wait_paused: the guest had been paused by its operator before, and is to stay so.
    virtual bool was_paused() const = 0;
    // Returns when all of it is sent and the hypervisor has let go of the disks: it will write
    // nothing any more. That the other end has it all is for the other end to say.
    virtual asio::awaitable<void> finish_memory(milliseconds patience) = 0;
    // Whatever the stage, and after any error: the guest goes on here as it did before. Never
    // after the first fence. Nothing to do where nothing was started. Error(refused): nothing is
    // left of the migration, and the guest does not run for another reason.
    virtual asio::awaitable<void> cancel(milliseconds patience) = 0;
    // Post-copy, where start_outgoing() was told that it may come to that: instead of waiting until
    // little is left, the guest is paused at once, wait_paused() and finish_memory() return soon,
    // and when it runs at the destination the rest() goes.
    virtual asio::awaitable<void> start_postcopy() {
        throw Error(ErrorKind::state, "this hypervisor has no post-copy");
    }
    // After finish_memory(). Error(state): it will never be there, for that reason.
    virtual asio::awaitable<MemoryRest> rest() { co_return MemoryRest::none; }
    // What is left of it goes on over a new link; one that is there, and may be dead, is dropped.
    virtual asio::awaitable<void> send_again(MemoryLink) { co_return; }
    // Nobody is left who could take the rest of it.
    virtual void forget_rest() {}
    // The VM has moved: ends what is left of it here. Error(state): its memory is still needed.
    virtual asio::awaitable<void> destroy_source(milliseconds patience) = 0;
};

// The VM at the destination.
class IncomingVm {
public:
    virtual ~IncomingVm() = default;

    // Starts the hypervisor, detached, so that it outlives us; returns when it waits for the
    // memory, paused. `lost` as above, until run() has returned. link.host: where to listen.
    virtual asio::awaitable<void>
    start_incoming(MemoryLink link, HypervisorLost lost, milliseconds patience) = 0;
    // Returns when it holds the whole memory, or, with post-copy, all that it needs of it to run;
    // paused, with no use made of the disks.
    virtual asio::awaitable<void> wait_loaded(Deadline deadline) = 0;
    // Post-copy, while the guest runs here and some of its memory is still to come: waits for a
    // new link.
    virtual asio::awaitable<MemoryWait> accept_again(MemoryLink) { co_return MemoryWait::whole; }
    // Instead of start_incoming(): takes over the hypervisor that an agent has started that is
    // gone. false: there is none.
    virtual asio::awaitable<bool> adopt(milliseconds patience) = 0;
    // wait_loaded() has returned, or it runs already.
    virtual bool ready() const = 0;
    // false: it is certain that the guest did not run.
    virtual bool may_have_run() const = 0;
    // The VM goes on here; with `paused` it is only ready to. Its network is told. Again: nothing
    // to do.
    virtual asio::awaitable<void> run(bool paused, milliseconds patience) = 0;
    // Never after run(): ends it. Nothing to do if it was not started.
    virtual asio::awaitable<void> destroy(milliseconds patience) = 0;
    // For people.
    virtual std::string state() const = 0;
};

// By vm.hypervisor, which load_vm_file has checked.
std::unique_ptr<OutgoingVm> make_outgoing(const VmFile& vm);
// qemu: `command` is what expand_command gave; `monitor` the socket that it names. xen: what the
// VM's description has, checked; and the scripts of this site.
struct IncomingSpec {
    std::string vm;
    std::string hypervisor;
    std::vector<std::string> disks;
    std::vector<NicSpec> nics;
    std::map<std::string, std::string> values;
    std::string disk_script, nic_script;
    std::vector<std::string> command;
    std::string monitor;
    std::string log;
    std::string key_dir; // for secrets of the link: made 0700, removed again
};
std::unique_ptr<IncomingVm> make_incoming(const IncomingSpec& spec);

} // namespace drover
