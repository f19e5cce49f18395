// SPDX-License-Identifier: GPL-2.0-or-later
// What happens in a world where a VM is moved as users move it: `drover migrate`, its guardian,
// `drover recover`, and back again.
#include "test/sim/call.h"
#include "test/sim/coordinator.h"

namespace drover::sim {
namespace {

constexpr unsigned most_tries = 10; // with no faults any more
constexpr uint64_t patience = 20'000;

} // namespace

bool World::is_served(size_t site) const {
    return std::all_of(disks_[site].begin(), disks_[site].end(), [](const auto& disk) {
        return disk->plugin && disk->plugin->loaded();
    });
}

bool World::owns_all(size_t site) const {
    return std::all_of(disks_[site].begin(), disks_[site].end(), [](const auto& disk) {
        return may_write(disk->visible);
    });
}

// What is on its way arrives also while nobody has anything to do.
Task<> World::tick() {
    for (;;) {
        co_await pause(50);
    }
}

// A process that has ended is gone.
Task<> World::reap() {
    const auto coordinator_ended = [this] { return coordinator && coordinator->ended(); };
    for (;;) {
        co_await until(coordinator_ended);
        coordinator.reset();
    }
}

// The operator of a VM that no migration has to do with, and that does not run: starts it anew.
Task<> World::keep_started() {
    const auto stands = [this] { return !journal.is_open() && !coordinator && !vm_->runs_at(); };
    for (;;) {
        co_await until(stands);
        const auto helped = [&] { return !stands(); };
        if (co_await until(helped, 1000)) {
            continue;
        }
        for (size_t site = 0; site < sites; ++site) {
            vm_->lose(site);
        }
        co_await until(helped);
    }
}

// The guardian, `drover serve` after a start, and at last the operator.
Task<> World::keep_recovered() {
    const auto needed = [this] {
        return journal.is_open() && !coordinator && hosts[journal.from].up;
    };
    for (;;) {
        co_await until(needed);
        co_await pause(random.below(500));
        if (!needed()) {
            continue;
        }
        const bool force = hosts[1 - journal.from].lost;
        if (force) {
            hosts[1 - journal.from].disowned = true;
        }
        coordinator = std::make_shared<Coordinator>(*this);
        trace("recovery{}", force ? " by force" : "");
        spawn(coordinator->owner, coordinator->recover(force));
        const auto ended = [this] { return !coordinator; };
        co_await until(ended);
        co_await pause(random.below(1000));
    }
}

// In the midst of a migration; mostly when that is about to be decided. False: it is too late.
Task<bool> World::amid_migration() {
    const auto under_way = [this] { return journal.is_open() && coordinator; };
    const auto deciding = [&] { return under_way() && journal.last == JournalStep::promote; };
    if (random.chance(70)) {
        co_await until(deciding);
        co_await pause(random.below(80));
    } else {
        co_await until(under_way);
        co_await pause(random.below(20'000));
    }
    co_return journal.is_open() && !stop_faults;
}

// The destination's host.
Task<> World::lose_destination() {
    const bool amid = co_await amid_migration();
    const size_t site = 1 - journal.from;
    if (!amid || !hosts[site].up) {
        co_return;
    }
    hit(Probe::destination_lost);
    if (vm_->home() == site) {
        vm_->forgive();
    }
    crash_host(site);
    hosts[site].lost = true;
    trace("host {} is lost", site);
    if (random.chance(50)) {
        const auto taken_back = [&] { return vm_->runs_at() == journal.from; };
        co_await until(taken_back);
        co_await pause(random.below(3000));
        trace("host {} is back", site);
        hosts[site].lost = false;
        hosts[site].up = true;
        if (hosts[site].disowned) {
            hit(Probe::superseded);
        }
    }
}

// The source's host likewise; then the operator takes the VM at the destination, if he can.
Task<> World::lose_source() {
    const bool amid = co_await amid_migration();
    const size_t site = journal.from;
    if (!amid || !hosts[site].up) {
        co_return;
    }
    hit(Probe::source_lost);
    crash_host(site);
    hosts[site].lost = true;
    trace("host {} is lost", site);
    const bool taken = co_await take_by_force(1 - site);
    hit(taken ? Probe::taken : Probe::not_taken);
    trace("the VM is {}", taken ? "taken by force" : "not taken");
    if (random.chance(50)) {
        source_gone_ = true;
        co_return;
    }
    co_await pause(random.below(3000));
    trace("host {} is back", site);
    hosts[site].lost = false;
    hosts[site].up = true;
    ++hosts[site].boot;
    if (taken) {
        hit(Probe::source_superseded);
    }
}

// As destination_recovery.cpp has it; again and again, until it is done or can't be.
Task<bool> World::take_by_force(size_t site) {
    const auto possible = [&] { return (!agent || agent->ended()) && is_served(site); };
    for (;;) {
        co_await until(possible);
        co_await pause(random.below(1000));
        if (!possible()) {
            continue;
        }
        agent.reset();
        if (!can_be_taken(site)) {
            co_return false;
        }
        try {
            co_await take_disks(site);
            co_return true;
        } catch (const Error& error) {
            trace("not taken yet: {}", error.what());
        }
    }
}

// Only a state that the source's disks have been in, all of them at one moment.
bool World::can_be_taken(size_t site) const {
    const Record& first = disks_[site][0]->plugin->record();
    if (is_promoted_by(standing_in(first), journal.migration)) {
        return true;
    }
    return std::all_of(disks_[site].begin(), disks_[site].end(), [&](const auto& each) {
        const Record& record = each->plugin->record();
        const bool whole = record.migration == journal.migration && record.role == Role::replica &&
                           record.stage != Stage::refused && record.consistent;
        const bool of_one_moment =
            record.stage == Stage::handed_over && record.token_hash == first.token_hash;
        return whole && (of_one_moment || disks_[site].size() == 1);
    });
}

Task<> World::take_disks(size_t site) {
    const Record first = disks_[site][0]->plugin->record();
    const bool promoted = is_promoted_by(standing_in(first), journal.migration);
    const bool forced = promoted && first.stage == Stage::over && first.token.empty();
    if (promoted && !forced && first.stage == Stage::over) {
        co_return; // its source knew
    }
    const bool held = std::any_of(disks_[site].begin(), disks_[site].end(), [](const auto& each) {
        return !may_write(each->plugin->record()) || each->plugin->unconfirmed();
    });
    std::optional<std::string> token;
    if (promoted && !forced && !held) {
        token = first.token;
    } else {
        Host& source = hosts[1 - site];
        source.disowned = true;
        if (may_write(disks_[1 - site][0]->durable)) {
            vm_->forgive(); // what it wrote there after the moment that has come here
        }
        if (!promoted || forced) {
            vm_->lose(site); // its memory may be of another moment
        }
    }
    for (size_t i = 0; i < plan.disks.size(); ++i) {
        const std::weak_ptr<Plugin> plugin = disk(site, i).plugin;
        if (plugin.expired()) {
            throw Error(ErrorKind::peer, "nobody is there", ECONNREFUSED);
        }
        Task<> work = plugin.lock()->promote(journal.migration, token);
        co_await ask(*this, site, plugin, std::move(work), patience);
    }
    if (vm_->at[site] == Machine::loaded) {
        vm_->resume(site);
    }
}

// Nobody has anything to do for it any more.
bool World::is_over(size_t from) const {
    if (!journal.is_open()) {
        return !coordinator;
    }
    if (hosts[from].lost) {
        return source_gone_;
    }
    // What is left to do can't be done.
    const Disk& first = *disks_[from][0];
    return faults_over && hosts[1 - from].lost &&
           (first.visible.stage == Stage::over || (vm_->runs_at() == from && owns_all(from)));
}

// One try.
Task<> World::move(size_t from) {
    const auto possible = [&] { return hosts[from].up && !coordinator && is_served(from); };
    co_await until(possible);
    co_await pause(random.below(2000));
    if (!possible() || !owns_all(from)) {
        co_return;
    }
    journal.from = from;
    journal.migration = secret();
    journal.generation = 0;
    for (const auto& site : disks_) {
        for (const auto& each : site) {
            journal.generation = std::max(journal.generation, each->visible.generation + 1);
        }
    }
    coordinator = std::make_shared<Coordinator>(*this);
    trace("migration {} from {}", journal.migration, from);
    spawn(coordinator->owner, coordinator->migrate());
    const auto over = [&] { return is_over(from); };
    co_await until(over);
}

Task<> World::moves() {
    for (size_t site = 0; site < sites; ++site) {
        for (const auto& each : disks_[site]) {
            spawn(everybody, keep_served(*each));
        }
    }
    spawn(everybody, keep_running());
    spawn(everybody, keep_recovered());
    spawn(everybody, reap());
    spawn(everybody, keep_started());
    spawn(everybody, tick());
    if (plan.loses_destination) {
        spawn(everybody, lose_destination());
    }
    if (plan.loses_source) {
        spawn(everybody, lose_source());
    }
    const auto is_lost = [this](const Host& host) { return host.lost; };
    for (unsigned i = 0; i < plan.moves; ++i) {
        if (std::any_of(hosts.begin(), hosts.end(), is_lost)) {
            break;
        }
        const auto runs = [this] { return vm_->runs_at().has_value(); };
        co_await until(runs);
        const size_t from = vm_->home();
        const auto enough = [&] { return vm_->requests_made >= plan.requests * (i + 1) / 2; };
        co_await until(enough, random.below(20'000));
        if (i + 1 == plan.moves && random.chance(50)) {
            stop_faults = true; // else they may come in between
        }
        for (unsigned tries = 0;; tries += faults_over ? 1 : 0) {
            if (tries > most_tries) {
                fail("no migration comes about");
            }
            co_await move(from);
            if (hosts[from].lost || hosts[1 - from].lost || owns_all(1 - from)) {
                break;
            }
        }
    }
    stop_faults = true;
    const auto lost_with_its_host = [this] {
        return (hosts[1 - journal.from].lost &&
                disk(journal.from, 0).visible.stage == Stage::over) ||
               (source_gone_ && !owns_all(1 - journal.from));
    };
    const auto calm = [&] { return faults_over && (vm_->runs_at() || lost_with_its_host()); };
    co_await until(calm);
    if (vm_->runs_at()) {
        check_expected();
        if (!owns_all(vm_->home())) {
            fail("not all disks are where the VM is");
        }
    }
    finished = true;
}

} // namespace drover::sim
