// SPDX-License-Identifier: GPL-2.0-or-later
// What happens in a world where an operator moves a disk by hand, with the control methods: he
// tries, changes his mind, tries again, and in the end the VM runs at the other site.
#include "test/sim/vm.h"

namespace drover::sim {
namespace {

constexpr uint64_t patience = 20'000;
constexpr unsigned most_tries = 10; // with no faults any more

} // namespace

// Somebody boots the VM where its disks are, when it is lost.
Task<> World::keep_running() {
    const auto lost = [this] {
        for (size_t site = 0; site < sites; ++site) {
            if (vm_->at[site] != Machine::none) {
                return false;
            }
        }
        const auto site = bootable();
        return site && vm_->has_settled(*site);
    };
    for (;;) {
        co_await until(lost);
        vm_->boot(bootable().value());
        co_await pause(1 + random.below(100));
    }
}

// ... and starts what serves a disk again, when that is gone.
Task<> World::keep_served(Disk& disk) {
    const auto missing = [&] { return !disk.plugin && hosts[disk.site].up; };
    for (;;) {
        co_await until(missing);
        co_await pause(random.below(300));
        start_plugin(disk);
    }
}

// Not where it is known not to have run: such a disk holds its writes, and says so, until a
// recovery has found out whose it is.
std::optional<size_t> World::bootable() const {
    const auto is_held = [](const Record& record) {
        return record.stage == Stage::promoted && !record.may_have_run;
    };
    for (size_t site = 0; site < sites; ++site) {
        const auto& disks = disks_[site];
        if (hosts[site].up && !hosts[site].disowned &&
            std::all_of(disks.begin(), disks.end(), [&](const auto& disk) {
                return disk->plugin && disk->plugin->loaded() &&
                       may_write(disk->plugin->record()) && !is_held(disk->plugin->record());
            })) {
            return site;
        }
    }
    return std::nullopt;
}

template <typename Make>
auto World::operate(size_t site, Make&& make) {
    Disk& at = disk(site, 0);
    if (!at.plugin) {
        throw Error(ErrorKind::peer, "nobody is there", ECONNREFUSED);
    }
    return ask(*this, 0, std::weak_ptr(at.plugin), make(*at.plugin), patience);
}

// Until a stream runs, of the attempt that there is or of a new one.
Task<> World::replicate() {
    Disk& source = disk(0, 0);
    Disk& there = disk(1, 0);
    const auto served = [&] {
        return source.plugin && source.plugin->loaded() &&
               (plan.plain || (there.plugin && there.plugin->loaded()));
    };
    for (unsigned tries = 0;; tries += faults_over ? 1 : 0) {
        if (tries > most_tries) {
            fail("no stream comes about");
        }
        co_await until(served);
        if (source.plugin->tracked() && !source.plugin->stream()->failed()) {
            co_return;
        }
        std::optional<Error> failure;
        try {
            if (source.plugin->tracked()) {
                const auto cancel = [](Plugin& it) { return it.cancel(""); };
                co_await operate(0, cancel);
            }
            const Record record = source.visible;
            const bool again =
                record.migration == migration_ && !migration_.empty() &&
                (record.stage == Stage::replicating || record.stage == Stage::voided) &&
                random.chance(50);
            if (!again) {
                migration_ = secret();
                generation_ = std::max(record.generation, there.visible.generation) + 1;
            }
            if (!plan.plain && (!again || random.chance(20))) {
                ReplicaRequest request;
                request.migration = migration_;
                request.generation = generation_;
                request.uuid = record.uuid;
                const auto prepare = [&](Plugin& it) { return it.prepare(request); };
                co_await operate(1, prepare);
            }
            // It has no sessions: what a stream has left under way must not meet the next one's.
            kill(std::exchange(plain_server, new_owner()));
            const auto start = [&](Plugin& it) { return it.replicate(migration_, generation_); };
            co_await operate(0, start);
        } catch (const Error& error) {
            failure = error;
        }
        if (failure) {
            trace("no stream: {}", failure->what());
            co_await pause(random.below(500));
        }
    }
}

// Quiesces the disk, with the VM paused by its operator or with its writes held; the quiesce's id,
// "" if it did not come about.
Task<std::string> World::hand_over(bool in_earnest) {
    Disk& source = disk(0, 0);
    Disk& there = disk(1, 0);
    const bool hold = !in_earnest && random.chance(30);
    vm_->held = !hold;
    const auto idle = [this] { return vm_->idle() || !disk(0, 0).plugin; };
    if (!hold && random.chance(50)) {
        co_await until(idle);
    } else if (in_earnest) {
        // Those under way have their range, and finish meanwhile.
        const auto begun = [&] { return !source.plugin || source.plugin->waiting() == 0; };
        co_await until(begun);
    }
    vm_->one_more = !in_earnest && random.chance(40);
    const uint64_t waits = in_earnest ? patience / 2 : random.below(6000);
    std::string id;
    std::optional<Error> failure;
    const std::weak_ptr<Plugin> process = source.plugin;
    const uint64_t destination = there.instances;
    try {
        const auto quiesce = [&](Plugin& it) { return it.quiesce(hold, "", waits); };
        const Plugin::Quiesced quiesced = co_await operate(0, quiesce);
        id = quiesced.id;
    } catch (const Error& error) {
        failure = error;
    }
    if (failure) {
        trace("no handover: {}", failure->what());
        if (in_earnest && failure->sys_errno() == EBUSY && !process.expired()) {
            fail("the handover was voided, and nothing was written after it");
        }
        co_return std::string();
    }
    vm_->one_more = false;
    if (!hold) {
        co_await until(idle);
    }
    if (!process.expired() && source.plugin->tracked() &&
        source.plugin->tracked()->source.handover() == Source::Handover::durable) {
        check_handover(source, there, destination == there.instances);
    }
    co_return id;
}

// A handover that came about, or that may have.
Task<> World::give_up(std::string quiesce_id) {
    const auto stands = [this] {
        const auto& plugin = disk(0, 0).plugin;
        return plugin && (plugin->record().stage == Stage::quiescing ||
                          plugin->record().stage == Stage::quiesced);
    };
    while (stands()) {
        try {
            const auto cancel = [&](Plugin& it) { return it.cancel(quiesce_id); };
            co_await operate(0, cancel);
        } catch (const Error& error) {
            trace("not cancelled: {}", error.what());
        }
        co_await pause(1 + random.below(100));
    }
}

void World::check_handover(const Disk& source, const Disk& there, bool same_process) const {
    const Content& disk = source.image->now();
    if (there.image->now() != disk) {
        fail("the handover is durable and the disks differ");
    }
    if (there.image->safe() != disk) {
        fail("the handover counts as durable and a crash would lose some of it");
    }
    if (!plan.plain && same_process &&
        (there.durable.stage != Stage::handed_over ||
         there.durable.token_hash != source.plugin->record().token_hash)) {
        fail("the handover counts as durable and the destination has none");
    }
}

// What was decided is carried out, however often it takes. False: it was not to be.
Task<bool> World::take_over(std::string quiesce_id) {
    Disk& source = disk(0, 0);
    Disk& there = disk(1, 0);
    const auto served = [&] {
        return source.plugin && source.plugin->loaded() &&
               (plan.plain || (there.plugin && there.plugin->loaded()));
    };
    FenceRequest request;
    request.quiesce_id = quiesce_id;
    std::string token;
    while (token.empty()) {
        co_await until(served);
        std::optional<Error> failure;
        try {
            request.refusal_hash = there.plugin ? there.plugin->record().refusal_hash : "";
            const auto fence = [&](Plugin& it) { return it.fence(request); };
            token = co_await operate(0, fence);
        } catch (const Error& error) {
            failure = error;
        }
        if (failure) {
            trace("not fenced: {}", failure->what());
            if (failure->kind() == ErrorKind::state || failure->kind() == ErrorKind::refused) {
                co_return false;
            }
            co_await pause(1 + random.below(200));
        }
    }
    for (bool finished_there = plan.plain; !finished_there;) {
        co_await until(served);
        std::optional<Error> failure;
        try {
            const auto promote = [&](Plugin& it) { return it.promote(migration_, token); };
            co_await operate(1, promote);
            const auto finish = [&](Plugin& it) { return it.finish(migration_); };
            co_await operate(1, finish);
            finished_there = true;
        } catch (const Error& error) {
            failure = error;
        }
        if (failure) {
            trace("not promoted: {}", failure->what());
            if (failure->kind() == ErrorKind::state || failure->kind() == ErrorKind::refused) {
                fail("the disk is fenced, and its destination is not promoted: " +
                     std::string(failure->what()));
            }
            co_await pause(1 + random.below(200));
        }
    }
    co_return true;
}

Task<> World::course() {
    spawn(everybody, keep_served(disk(0, 0)));
    if (!plan.plain) {
        spawn(everybody, keep_served(disk(1, 0)));
    }
    spawn(everybody, keep_running());
    const auto count = [&](uint64_t part) { return plan.requests * part / (plan.quiesces + 1); };
    for (unsigned i = 0; i < plan.quiesces; ++i) {
        co_await replicate();
        const auto due = [&] {
            return vm_->requests_made >= count(i + 1) || !disk(0, 0).plugin ||
                   !disk(0, 0).plugin->tracked();
        };
        co_await until(due);
        if (!due()) {
            continue;
        }
        const std::string id = co_await hand_over(false);
        vm_->held = false;
        co_await pause(random.below(500)); // a write may void it
        co_await give_up(id);
    }
    const auto enough = [&] { return vm_->requests_made >= plan.requests; };
    co_await until(enough);
    if (random.chance(50)) {
        stop_faults = true; // else they may come in between
    }
    for (unsigned tries = 0;; tries += faults_over ? 1 : 0) {
        if (tries > most_tries) {
            fail("no handover comes about");
        }
        co_await replicate();
        const std::string id = co_await hand_over(true);
        if (!id.empty()) {
            vm_->one_more = !faults_over && random.chance(20); // somebody was careless
            const bool moved = co_await take_over(id);
            if (moved) {
                break;
            }
        }
        vm_->held = false;
        co_await give_up(id);
    }
    if (!plan.plain) {
        const auto there = [this] { return bootable().has_value(); };
        co_await until(there);
        vm_->held = false;
        if (vm_->at[0] == Machine::none) {
            if (!vm_->runs_at()) { // or it was booted by now
                vm_->boot(1);
            }
        } else {
            vm_->pause(0);
            vm_->load(1, 0);
            vm_->resume(1);
            vm_->lose(0);
        }
        const auto more = [this, before = vm_->requests_made] {
            return vm_->requests_made >= before + 20;
        };
        co_await until(more);
        stop_faults = true;
        const auto calm = [this] { return faults_over && vm_->runs_at(); };
        co_await until(calm);
        check_expected();
    }
    finished = true;
}

} // namespace drover::sim
