// SPDX-License-Identifier: GPL-2.0-or-later
// What goes wrong, and when. A seed has some of the kinds, so that each is also seen alone.
#include "test/sim/coordinator.h"

namespace drover::sim {
namespace {

enum class Kind : unsigned {
    cut_links,
    silence,
    partition,
    kill_source,
    kill_destination,
    crash_source,
    crash_destination,
    jump,
    fill_disk,
    kill_coordinator,
    kill_agent,
    kill_hypervisor,
    count_,
};

} // namespace

Task<> World::faults() {
    std::vector<unsigned> kinds;
    for (unsigned kind = 0; kind < unsigned(Kind::count_); ++kind) {
        if ((plan.fault_kinds >> kind & 1) != 0) {
            kinds.push_back(kind);
        }
    }
    const auto enough = [this] { return stop_faults; };
    for (unsigned i = 0; i < plan.faults && !kinds.empty() && !stop_faults; ++i) {
        const uint64_t most = random.chance(50) ? 300 : 4000;
        co_await until(enough, random.between(1, most));
        if (!stop_faults) {
            ++faults_under_way_;
            spawn(everybody, fault(kinds[random.below(kinds.size())]));
        }
    }
    const auto none = [this] { return faults_under_way_ == 0; };
    co_await until(none);
    // What cannot flush any more is started again by whoever sees to it.
    for (const auto& site : disks_) {
        for (const auto& each : site) {
            if (each->sync_failed) {
                kill_plugin(*each);
            }
        }
    }
    faults_over = true;
    trace("no more faults");
}

// Links that do not last.
Task<> World::cuts() {
    const auto enough = [this] { return stop_faults || faults_over; };
    while (plan.cuts > 0 && !enough()) {
        co_await until(enough, random.between(1, plan.cuts));
        const auto& plugin = disk(vm_->home(), random.below(plan.disks.size())).plugin;
        if (!enough() && plugin && plugin->stream()) {
            hit(Probe::link_cut);
            plugin->stream()->cut();
        }
    }
}

Task<> World::fault(unsigned kind) {
    struct Ended {
        unsigned& count;
        ~Ended() { --count; }
    } const ended{faults_under_way_};
    const size_t index = random.below(plan.disks.size());
    const size_t source = vm_->home(), destination = 1 - source;
    const auto stream = [&]() -> Stream* {
        const auto& plugin = disk(source, index).plugin;
        return plugin ? plugin->stream().get() : nullptr;
    };
    switch (static_cast<Kind>(kind)) {
    case Kind::cut_links:
        if (stream() != nullptr) {
            trace("links cut");
            hit(Probe::link_cut);
            stream()->cut();
        }
        break;
    case Kind::silence:
        if (stream() != nullptr) {
            trace("links silent");
            hit(Probe::link_silent);
            stream()->fall_silent();
        }
        break;
    case Kind::partition: {
        trace("partition");
        hit(Probe::partition);
        partitioned = true;
        const uint64_t longest = random.chance(70) ? 1000 : 12'000;
        co_await pause(random.below(longest));
        partitioned = false;
        trace("partition over");
        break;
    }
    case Kind::kill_source:
    case Kind::kill_destination: {
        const bool at_source = static_cast<Kind>(kind) == Kind::kill_source;
        Disk& victim = disk(at_source ? source : destination, index);
        if (victim.plugin) {
            hit(at_source ? Probe::source_died : Probe::destination_died);
            kill_plugin(victim);
        }
        break;
    }
    case Kind::crash_source:
    case Kind::crash_destination: {
        const bool at_source = static_cast<Kind>(kind) == Kind::crash_source;
        const size_t site = at_source ? source : destination;
        if (!hosts[site].up) {
            break;
        }
        hit(at_source ? Probe::source_host_died : Probe::destination_host_died);
        crash_host(site);
        const uint64_t longest = random.chance(70) ? 500 : 15'000;
        co_await pause(random.below(longest));
        hosts[site].up = true;
        ++hosts[site].boot;
        trace("host {} is up again", site);
        break;
    }
    case Kind::jump:
        hit(Probe::clock_jumped);
        trace("the clock jumps");
        jump(random.below(20'000));
        break;
    case Kind::fill_disk: {
        const size_t site = random.below(sites);
        trace("host {} has no space", site);
        hit(Probe::disk_full);
        hosts[site].disk_full = true;
        co_await pause(random.below(1000));
        hosts[site].disk_full = false;
        break;
    }
    case Kind::kill_coordinator:
        if (coordinator) {
            trace("the coordinator dies");
            hit(Probe::coordinator_died);
            coordinator.reset();
        }
        break;
    case Kind::kill_agent:
        if (agent) {
            trace("the agent dies");
            hit(Probe::agent_died);
            agent.reset();
        }
        break;
    case Kind::kill_hypervisor: {
        const size_t site = random.below(sites);
        if (plan.moves > 0 && vm_->at[site] != Machine::none) {
            trace("the hypervisor at {} dies", site);
            hit(Probe::hypervisor_died);
            vm_->lose(site);
        }
        break;
    }
    case Kind::count_:
        break;
    }
}

} // namespace drover::sim
