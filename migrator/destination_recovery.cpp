// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/destination_recovery.h"

#include "migrator/paths.h"
#include "migrator/source_disk.h"

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds call_patience{30000};

} // namespace

bool DestinationRecovery::is_needed(const std::string& vm, const std::string& first_disk) {
    const auto journal = read_journal(paths().journal(vm));
    if (journal && !journal->over()) {
        return journal->text("side") == "destination";
    }
    const Stage stage = recorded_standing(vm, first_disk).stage;
    return stage == Stage::receiving || stage == Stage::handed_over || stage == Stage::promoted;
}

DestinationRecovery::DestinationRecovery(asio::any_io_executor executor,
                                         const SiteConfig& site,
                                         std::string vm,
                                         PeerOptions peer,
                                         bool force)
    : executor_(executor), site_(site), vm_(std::move(vm)), peer_(std::move(peer)), force_(force),
      destination_(
          executor,
          site,
          "recover",
          [](const std::string&, const std::string&) {},
          [](const std::string&) {}) {}

DestinationRecovery::~DestinationRecovery() = default;

asio::awaitable<DestinationRecovery::Result> DestinationRecovery::run() {
    const std::string path = paths().journal(vm_);
    journal_ = read_journal(path).value_or(JournalContent());
    if (journal_.over() || journal_.text("side") != "destination") {
        throw Error(ErrorKind::state,
                    fmt::format("{0}: a migration to this host has not come to its end, but {1}, "
                                "which describes it, is lost: `drover recover {0}` at its source "
                                "settles it",
                                vm_,
                                path));
    }
    refuse_if_under_way();
    co_await take_over();
    const DiskStanding decisive = standings_.front();
    if (is_promoted_by(decisive, journal_.text("migration"))) {
        co_return co_await settle_promoted(decisive);
    }
    if (decisive.stage == Stage::refused || !(force_ || destination_.is_whole())) {
        co_return co_await refuse();
    }
    if (force_) {
        co_return co_await take_by_force();
    }
    co_return co_await settle_whole(decisive);
}

// Whatever the operator says of the source: an agent has heard of it lately. One that has not is
// ended by the take-over.
void DestinationRecovery::refuse_if_under_way() const {
    RunLock probe(paths().agent_lock(vm_));
    if (!probe.try_lock("recover") && !Destination::is_forgotten(probe)) {
        const auto holder = probe.holder();
        throw Error(
            ErrorKind::state,
            fmt::format("{} is being migrated to this host (its agent is process {}). Should "
                        "its source be gone, that is known a minute later: try again then",
                        vm_,
                        holder ? holder->pid : 0));
    }
}

asio::awaitable<void> DestinationRecovery::take_over() {
    Json params{{"migration", journal_.text("migration")},
                {"vm", journal_.facts.value("vm", Json())},
                {"disk_only", journal_.facts.value("disk_only", false)}};
    const Json answer = co_await destination_.take_over(std::move(params));
    for (const Json& disk : answer.at("disks")) {
        standings_.push_back(standing_of(disk));
    }
}

asio::awaitable<DestinationRecovery::Result> DestinationRecovery::refuse() {
    co_await destination_.refuse();
    co_return Result{
        exit_done,
        fmt::format("{0} was not promoted here, and now it never will be by migration {1}; "
                    "what that had left here is removed. The VM belongs to its source: "
                    "`drover recover {0}` there brings it up, if it does not run",
                    vm_,
                    journal_.text("migration"))};
}

// Not promoted, but perhaps all that is left of the VM: not removed before its source is known to
// have it.
asio::awaitable<DestinationRecovery::Result>
DestinationRecovery::settle_whole(const DiskStanding& decisive) {
    if (!peer_.host.empty()) {
        const auto source = co_await ask_source();
        if (source &&
            (source->migration == decisive.migration || source->generation > decisive.generation)) {
            co_return co_await refuse();
        }
    }
    const std::string by_force =
        destination_.is_of_one_moment()
            ? fmt::format("Only if the source is switched off or lost for good: `drover recover "
                          "{} --i-know-the-other-side-is-dead` here takes the VM as its disks are "
                          "here; what it wrote later at the source is lost",
                          vm_)
            : "They can't be taken by force: the images here are of different moments";
    co_return Result{
        exit_recover,
        fmt::format(
            "{0}: its disks have come here, but the VM was never given to this host "
            "(migration {1}), and the source has not been asked. It may run there, or go "
            "on there at any time; to start it here as well would split its data in two "
            "for good. `drover recover {0}` at the source brings it up where it belongs; "
            "or `drover recover {0} HOST [--rsh CMD]` here, with the way to the source. {2}",
            vm_,
            journal_.text("migration"),
            by_force)};
}

// Only a state that the source's disks have been in, all of them at one moment.
asio::awaitable<DestinationRecovery::Result> DestinationRecovery::take_by_force() {
    if (!destination_.is_whole()) {
        throw Error(ErrorKind::refused,
                    fmt::format("{0} can't be taken by force: not all of its disks has come, so "
                                "the images here are no state that they ever had. `drover recover "
                                "{0}` without force removes them",
                                vm_));
    }
    if (!destination_.is_of_one_moment()) {
        throw Error(ErrorKind::refused,
                    fmt::format("{} can't be taken by force: its disks were not handed over "
                                "together, so the images here are of different moments",
                                vm_));
    }
    const bool handed_over = standings_.front().stage == Stage::handed_over;
    const uint64_t generation = co_await destination_.promote_by_force();
    co_return Result{
        exit_done,
        fmt::format("{} was taken by force, at generation {}: start it here{}. Should its "
                    "source come back, nothing of it may run there",
                    vm_,
                    generation,
                    handed_over ? ""
                                : ". Its disk is as it was some moment before the end: "
                                  "what was written after it is lost")};
}

asio::awaitable<DestinationRecovery::Result>
DestinationRecovery::settle_promoted(const DiskStanding& decisive) {
    if (!peer_.host.empty()) {
        const auto source = co_await ask_source();
        if (source && source->generation > decisive.generation) {
            co_await destination_.supersede_at(source->generation);
            co_return Result{exit_done,
                             fmt::format("{} was taken back by force at {} (generation {}): its "
                                         "disks here are fenced",
                                         vm_,
                                         peer_.host,
                                         source->generation)};
        }
        if (source && !may_write(source->role) && source->migration == decisive.migration) {
            co_return co_await complete();
        }
    }
    const bool forced = destination_.was_forced(); // and whoever did it came no further
    if (!forced && !destination_.is_held()) {
        // Its disks have been served since the promotion, so nobody has come between.
        co_await destination_.promote_rest();
        co_return Result{exit_done,
                         fmt::format("{} belongs here{}. Its source has yet to be told: `drover "
                                     "recover {}` there does that",
                                     vm_,
                                     how_it_stands(),
                                     vm_)};
    }
    if (force_ || forced) {
        const uint64_t generation = co_await destination_.promote_by_force();
        co_return Result{exit_done,
                         fmt::format("{} is this host's, at generation {}{}. Should its source "
                                     "come back, nothing of it may run there",
                                     vm_,
                                     generation,
                                     how_it_stands())};
    }
    co_return Result{
        exit_recover,
        fmt::format("{0} was promoted here by migration {1}, but its source has never confirmed "
                    "it, and the processes of its disks have ended since: should the source have "
                    "been forced to take the VM back, it runs there, and to go on here as well "
                    "would split its data in two for good. So its disks hold what is written to "
                    "them. `drover recover {0}` at the source settles it, or here `drover recover "
                    "{0} HOST [--rsh CMD]`, with the way to the source. Only if the source is "
                    "switched off or lost for good: `drover recover {0} "
                    "--i-know-the-other-side-is-dead`",
                    vm_,
                    journal_.text("migration"))};
}

std::string DestinationRecovery::how_it_stands() const {
    return destination_.runs() ? ", and runs" : "; start it, if it does not run";
}

// The source is fenced: the VM is this host's, and the source finishes when it is asked next.
asio::awaitable<DestinationRecovery::Result> DestinationRecovery::complete() {
    co_await destination_.promote_rest();
    co_await destination_.finish();
    co_return Result{exit_done, fmt::format("{} belongs here{}", vm_, how_it_stands())};
}

// nullopt: it does not answer.
asio::awaitable<std::optional<DiskStanding>> DestinationRecovery::ask_source() {
    PeerAgent agent(executor_, site_, peer_, PeerAgent::Events());
    std::optional<DiskStanding> standing;
    try {
        co_await agent.start();
        DiskNames disks;
        for (const Json& disk : journal_.facts.at("vm").at("disks")) {
            disks.push_back(disk.at("name").get<std::string>());
        }
        Json params{{"vm", vm_}, {"disks", disks}, {"migration", journal_.text("migration")}};
        const Json answer = co_await agent.call("records", std::move(params), call_patience);
        standing = read_standings(answer, "records", disks).at(0);
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover: warning: {}: {}\n", peer_.host, error.what());
    }
    co_await agent.end();
    co_return standing;
}

} // namespace drover
