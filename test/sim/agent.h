// SPDX-License-Identifier: GPL-2.0-or-later
// The agent at the destination of a simulated migration: the real Takeover over simulated
// disks and a simulated hypervisor, with what destination.cpp does around it.
#pragma once

#include "migrator/takeover.h"
#include "test/sim/process.h"
#include "test/sim/vm.h"

namespace drover::sim {

// What a process writes down before each step, and finds again after its own death.
class Steps : public StepLog {
public:
    // keep: the VM's journal at its source; null: nothing of it matters later.
    Steps(Process& process, std::optional<JournalStep>* keep) : process_(process), keep_(keep) {}
    asio::awaitable<void> step(JournalStep step) override;

private:
    Task<> write(JournalStep step);

    Process& process_;
    std::optional<JournalStep>* const keep_;
};

// Asks the process that serves a disk, for the process that has this; waits for it to be served.
class DiskCaller {
public:
    DiskCaller(Process& process, size_t site, size_t index)
        : process_(process), disk_(process.world.disk(site, index)), name_(disk_.name()) {}

protected:
    static constexpr uint64_t patience = 20'000;

    // method(Plugin&), a Task.
    template <typename Method>
    auto call(Method method) -> decltype(method(std::declval<Plugin&>()));
    Task<> wait_until_served();

    Process& process_;
    Disk& disk_;
    const std::string name_;
};

template <typename Method>
auto DiskCaller::call(Method method) -> decltype(method(std::declval<Plugin&>())) {
    co_await wait_until_served();
    const std::weak_ptr<Plugin> plugin = disk_.plugin;
    auto work = method(*disk_.plugin);
    co_return co_await ask(
        process_.world, process_.site(), plugin, std::move(work), DiskCaller::patience);
}

class Agent final : public Process {
public:
    // peer: who started it, at the other site.
    Agent(World& its_world, size_t its_site, std::weak_ptr<Process> peer, std::string migration);
    ~Agent();

    bool ended() const { return over_; }
    // As the RPC methods. The calls of one connection are carried out in their order: `number`
    // counts them from 1.
    Task<> prepare(uint64_t number, uint64_t generation);
    Task<std::vector<DiskStanding>> take_over(uint64_t number);
    Task<> loaded(uint64_t number);
    Task<> promote(uint64_t number, std::string token);
    Task<> run_vm(uint64_t number);
    Task<std::vector<std::string>> refuse(uint64_t number);
    Task<> supersede(uint64_t number, uint64_t generation);
    Task<> finish(uint64_t number);
    // The source is gone, or another agent is to act.
    Task<> abandon();

private:
    class Disk;
    class Machine;
    class Turn;

    template <typename Result>
    Task<Result> in_turn(uint64_t number, Task<Result> call);
    Task<> do_prepare(uint64_t generation);
    Task<std::vector<DiskStanding>> do_take_over();
    Task<std::vector<std::string>> do_refuse();
    Task<> do_supersede(uint64_t generation);
    Task<> do_finish();
    Task<> watch();

    const std::weak_ptr<Process> peer_;
    const std::string migration_;
    std::vector<std::unique_ptr<Disk>> disks_;
    std::unique_ptr<Machine> vm_;
    Steps steps_;
    std::unique_ptr<Takeover> takeover_;
    bool busy_ = false, over_ = false, acting_ = false;
    uint64_t served_ = 0;
};

} // namespace drover::sim
