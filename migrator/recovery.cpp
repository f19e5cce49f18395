// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/recovery.h"

#include "migrator/takeover.h"

#include <algorithm>

namespace drover {
namespace {

// How often a race that was lost is looked at again: each time the other one has made a step
// that can't be taken back, and there are few of them.
constexpr int most_looks = 4;

// Not one of a lost link, after which it may have been done all the same.
bool is_answer(const Error& error) {
    return error.kind() == ErrorKind::state || error.kind() == ErrorKind::refused;
}

// Whatever the task throws but a cancellation is told to trouble.
asio::awaitable<void>
attempt(asio::awaitable<void> task, std::string what, Recovery::Trouble trouble) {
    try {
        co_await std::move(task);
    } catch (const std::exception& error) {
        trouble(what.empty() ? error.what() : fmt::format("{}: {}", what, error.what()));
    }
}

} // namespace

asio::awaitable<Verdict> Recovery::run() {
    Verdict verdict = Verdict::undecided;
    for (int look = 0; look < most_looks && verdict == Verdict::undecided; ++look) {
        why_.clear();
        verdict = co_await decide();
        if (verdict == Verdict::undecided && !why_.empty()) {
            break; // looking again would not help
        }
    }
    if (verdict == Verdict::undecided && why_.empty()) {
        why_ = "somebody else is at it at the same time";
    }
    co_return verdict;
}

// undecided with an empty why_: a race was lost, look again.
asio::awaitable<Verdict> Recovery::decide() {
    DiskStanding standing;
    try {
        standing = co_await first().standing();
    } catch (const Error& error) {
        why_ = error.what();
        co_return Verdict::undecided;
    }
    const bool ours = standing.migration == plan_.migration;
    if (may_write(standing.role)) {
        const bool won = !ours || co_await cancel_all();
        if (!won) {
            co_return Verdict::undecided;
        }
        co_return co_await stay_here();
    }
    if (!ours) {
        why_ = fmt::format("disk {} is {} in another migration, {}",
                           first().name(),
                           to_string(standing.role),
                           standing.migration);
        co_return Verdict::undecided;
    }
    if (standing.stage == Stage::over) {
        runs_there_ = co_await supersede_rest(standing.generation);
        co_return runs_there_ ? Verdict::there : Verdict::undecided;
    }
    if (parts_.there == nullptr && !parts_.plain) {
        co_return co_await take_by_force("it is not known which host that is: name it");
    }
    if (parts_.plain) {
        // From the fence on its copy is the newer one.
        std::vector<DiskStanding> nobodys;
        co_return co_await go_there(std::move(nobodys));
    }
    co_return co_await ask_there(standing.generation);
}

// --- not fenced

// The first disk's record decides: nothing is resumed before it has taken the cancellation.
asio::awaitable<bool> Recovery::cancel_all() {
    co_await note(JournalStep::cancel);
    bool raced = false;
    try {
        co_await first().cancel();
        for (size_t i = 1; i < parts_.disks.size(); ++i) {
            co_await follow_first(*parts_.disks[i]);
        }
    } catch (const Error& error) {
        raced = is_answer(error);
        why_ = raced ? "" : error.what();
    }
    co_return !raced && why_.empty();
}

// The first disk is this host's. That a further one is fenced is then left from a recovery by
// force, which had come no further.
asio::awaitable<void> Recovery::follow_first(DiskAtSource& disk) {
    const DiskStanding standing = co_await disk.standing();
    if (standing.migration != plan_.migration) {
        co_return;
    }
    if (may_write(standing.role)) {
        co_await disk.cancel();
    } else {
        co_await disk.unfence_by_force();
    }
}

// The first disk is the destination's. That a further one was not fenced is then left from a
// switchover that had come no further when the destination was taken by force, at `generation`.
asio::awaitable<bool> Recovery::supersede_rest(uint64_t generation) {
    try {
        for (size_t i = 1; i < parts_.disks.size(); ++i) {
            const DiskStanding standing = co_await parts_.disks[i]->standing();
            if (standing.migration == plan_.migration && may_write(standing.role)) {
                co_await parts_.disks[i]->supersede(generation);
            }
        }
    } catch (const Error& error) {
        why_ = error.what();
    }
    co_return why_.empty();
}

asio::awaitable<Verdict> Recovery::stay_here() {
    co_await resume();
    if (parts_.there == nullptr) {
        co_return Verdict::here;
    }
    refusal_owed_ = true;
    Verdict verdict = Verdict::here;
    bool promoted = false;
    try {
        co_await refuse_there();
    } catch (const Error& error) {
        promoted = error.kind() == ErrorKind::state;
        trouble_(error.what());
    }
    if (promoted) {
        verdict = co_await settle_owners();
    }
    co_await look_at_all(); // that may have taken long
    co_return verdict;
}

asio::awaitable<void> Recovery::refuse_there() {
    co_await parts_.there->refuse();
    refusal_owed_ = false;
}

// Both sides are the owner: an operator has forced one of them, which has the larger generation.
asio::awaitable<Verdict> Recovery::settle_owners() {
    DiskStanding here, there;
    std::vector<DiskStanding> standings;
    bool in_use = false;
    for (DiskAtSource* const disk : parts_.disks) {
        const DiskStanding one = co_await disk->standing();
        in_use = in_use || one.in_use;
        here = disk == parts_.disks.front() ? one : here;
    }
    try {
        standings = co_await parts_.there->take_over();
    } catch (const Error& error) {
        trouble_(error.what());
    }
    if (standings.empty() || !is_promoted_by(standings.front(), plan_.migration)) {
        co_return Verdict::here;
    }
    there = standings.front();
    if (here.generation > there.generation) {
        trouble_(
            "the destination was promoted before the VM was taken back by force: it may have run "
            "there; what it wrote there is in its images there");
        co_await parts_.there->supersede(here.generation);
        refusal_owed_ = false;
        co_return Verdict::here;
    }
    if (here.generation == there.generation) {
        why_ = fmt::format("both sides have taken the disks by force, at generation {}: each has "
                           "written for itself since. End the VM at one side, and start that side "
                           "anew (docs/state-files.md)",
                           here.generation);
        co_return Verdict::undecided;
    }
    if (in_use) {
        why_ =
            fmt::format("both sides own the disks: the destination was promoted by force "
                        "(generation {}), and here (generation {}) they are in use. End the VM at "
                        "one side, and `drover recover` again here",
                        there.generation,
                        here.generation);
        co_return Verdict::undecided;
    }
    co_await first().supersede(there.generation);
    runs_here_ = false;
    runs_there_ = co_await supersede_rest(there.generation);
    co_return runs_there_ ? Verdict::there : Verdict::undecided;
}

asio::awaitable<void> Recovery::resume() {
    co_await note(JournalStep::resume);
    bool for_good = false;
    try {
        co_await parts_.vm->resume();
        runs_here_ = true;
    } catch (const Error& error) {
        for_good = error.kind() == ErrorKind::refused;
        trouble_(fmt::format("the VM: {}", error.what()));
    } catch (const std::exception& error) {
        trouble_(fmt::format("the VM: {}", error.what()));
    }
    if (!runs_here_ && !for_good) {
        stuck_ = co_await parts_.vm->is_there();
    }
    co_await look_at_all();
}

// One that has died meanwhile is served again by being asked.
asio::awaitable<void> Recovery::look_at_all() {
    for (DiskAtSource* const disk : parts_.disks) {
        co_await attempt(look_at(*disk), "", trouble_);
    }
}

asio::awaitable<void> Recovery::look_at(DiskAtSource& disk) {
    co_await disk.standing();
}

// --- fenced

asio::awaitable<Verdict> Recovery::ask_there(uint64_t generation) {
    std::vector<DiskStanding> standings;
    std::string silence;
    try {
        standings = co_await parts_.there->take_over();
    } catch (const Error& error) {
        silence = error.what();
    }
    if (standings.empty()) {
        co_return co_await take_by_force(silence);
    }
    const DiskStanding& decisive = standings.front();
    if (is_promoted_by(decisive, plan_.migration)) {
        const bool followed = co_await supersede_rest(decisive.generation);
        if (!followed) {
            co_return Verdict::undecided;
        }
        co_return co_await go_there(std::move(standings));
    }
    if (decisive.generation > generation) {
        runs_there_ = true; // and it has moved on since
        co_return Verdict::there;
    }
    co_return co_await take_back();
}

asio::awaitable<Verdict> Recovery::go_there(std::vector<DiskStanding> standings) {
    const bool may_have_run = standings.empty() || standings.front().may_have_run;
    try {
        co_await note(JournalStep::promote);
        // Also where it says that it is promoted: a record that was found need not be on storage
        // yet, and a disk whose VM is known not to have run holds its writes.
        if (std::any_of(standings.begin(), standings.end(), [](const DiskStanding& one) {
                return one.stage != Stage::over;
            })) {
            const std::string token = co_await first().fence(std::string(), std::string());
            co_await parts_.there->promote(token);
        }
        runs_there_ = co_await run_there();
        if (runs_there_ && parts_.forwards) {
            co_await forward_all(parts_.disks);
        }
    } catch (const Error& error) {
        why_ = error.what();
    }
    if (!why_.empty()) {
        co_return Verdict::undecided;
    }
    if (!runs_there_ && !may_have_run) {
        const bool memory_is_here = co_await parts_.vm->is_there();
        if (memory_is_here) {
            co_return co_await take_back();
        }
    }
    co_return Verdict::there;
}

// false: its hypervisor can't.
asio::awaitable<bool> Recovery::run_there() {
    if (!parts_.vm->has_memory()) {
        co_return true;
    }
    try {
        co_await parts_.there->run(parts_.vm->was_paused());
    } catch (const Error& error) {
        if (!is_answer(error)) {
            throw;
        }
        trouble_(error.what());
        co_return false;
    }
    co_return true;
}

asio::awaitable<Verdict> Recovery::take_back() {
    co_await note(JournalStep::refuse);
    std::vector<std::string> tokens;
    bool raced = false;
    try {
        tokens = co_await parts_.there->refuse();
    } catch (const Error& error) {
        raced = error.kind() == ErrorKind::state; // promoted meanwhile
        why_ = raced ? "" : error.what();
    }
    if (tokens.size() != parts_.disks.size()) {
        co_return Verdict::undecided;
    }
    if (tokens.front().empty()) {
        why_ =
            fmt::format("the destination knows nothing of disk {}: its record there is lost, and "
                        "with it whether it was promoted",
                        first().name());
        co_return Verdict::undecided;
    }
    co_await note(JournalStep::unfence);
    for (size_t i = parts_.disks.size(); i-- > 0;) {
        try {
            co_await unfence_disk(i, tokens[i]);
        } catch (const Error& error) {
            why_ = fmt::format("the destination has refused, but {}", error.what());
        }
        if (!why_.empty()) {
            co_return Verdict::undecided;
        }
    }
    co_await resume();
    co_return Verdict::here;
}

// A further disk may not have come to its fence.
asio::awaitable<void> Recovery::unfence_disk(size_t index, std::string token) {
    DiskAtSource& disk = *parts_.disks[index];
    const DiskStanding standing = co_await disk.standing();
    if (!may_write(standing.role)) {
        co_await disk.unfence(token);
    } else if (standing.migration == plan_.migration) {
        co_await disk.cancel();
    }
}

asio::awaitable<Verdict> Recovery::take_by_force(std::string reason) {
    if (!plan_.force) {
        unanswered_ = true;
        why_ = reason;
        co_return Verdict::undecided;
    }
    co_await parts_.steps->step(JournalStep::force); // it must be known for ever
    forced_ = true;
    // The decision is made here, so the first disk comes first.
    for (DiskAtSource* const disk : parts_.disks) {
        co_await disk->unfence_by_force();
    }
    co_await resume();
    co_return Verdict::here;
}

// A journal that can't be written does not keep anybody from a way back.
asio::awaitable<void> Recovery::note(JournalStep step) {
    co_await attempt(parts_.steps->step(step), "", trouble_);
}

asio::awaitable<void> let_go(SwitchoverParts parts, Recovery::Trouble trouble) {
    co_await attempt(parts.steps->step(JournalStep::finish), "", trouble);
    std::vector<asio::awaitable<void>> steps;
    // The destination first knows that it is over: a source that has finished asks no more.
    if (parts.there != nullptr) {
        co_await attempt(parts.there->finish(), "", trouble);
    }
    for (DiskAtSource* const disk : parts.disks) {
        steps.push_back(attempt(disk->finish(), "", trouble));
    }
    if (parts.vm->has_memory()) {
        steps.push_back(attempt(parts.vm->destroy(), "the VM's hypervisor here", trouble));
    }
    co_await all_to_the_end(std::move(steps));
}

} // namespace drover
