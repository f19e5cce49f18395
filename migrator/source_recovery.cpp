// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/source_recovery.h"

#include "migrator/dns_change.h"
#include "migrator/drivers/none.h"
#include "migrator/host_facts.h"
#include "migrator/paths.h"
#include "migrator/postcopy.h"
#include "migrator/run_lock.h"
#include "migrator/serve.h"
#include "migrator/tunnels.h"
#include "migrator/vm_file.h"
#include "nbd-proxy/record_store.h"

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds leftover_patience{3000};

bool is_under_way(const Record& record) {
    switch (record.stage) {
    case Stage::replicating:
    case Stage::quiescing:
    case Stage::quiesced:
    case Stage::voided:
        return true;
    case Stage::fenced:
        return true;
    default:
        return false;
    }
}

} // namespace

bool SourceRecovery::is_needed(const std::string& vm, const std::string& first_disk) {
    const auto journal = read_journal(paths().journal(vm));
    if (journal && !journal->over()) {
        return journal->text("side") == "source";
    }
    const auto record = peek_record(paths().disk_state(vm, first_disk));
    return record && record->stage == Stage::fenced;
}

SourceRecovery::SourceRecovery(asio::any_io_executor executor,
                               const SiteConfig& site,
                               const VmFile& vm,
                               PeerOptions peer,
                               bool force)
    : executor_(executor), site_(site), vm_(vm), peer_(std::move(peer)), force_(force),
      changed_(executor) {}

SourceRecovery::~SourceRecovery() = default;

asio::awaitable<SourceRecovery::Result> SourceRecovery::run() {
    read_journal_of_vm();
    co_await make_parts();
    Recovery::Plan plan;
    plan.migration = migration_;
    plan.force = force_;
    Recovery recovery(parts_, std::move(plan), [this](const std::string& text) {
        result_.troubles.push_back(text);
    });
    result_.verdict = co_await recovery.run();
    switch (result_.verdict) {
    case Verdict::here:
        co_await conclude_here(recovery);
        break;
    case Verdict::there:
        co_await conclude_there(recovery);
        break;
    case Verdict::undecided:
        conclude_undecided(recovery);
        break;
    }
    co_await end_leftovers();
    if (agent_) {
        co_await agent_->end();
    }
    co_return std::move(result_);
}

void SourceRecovery::read_journal_of_vm() {
    const std::string path = paths().journal(vm_.name);
    const auto found = read_journal(path);
    if (!found || found->over() || found->text("side") != "source") {
        steps_ = std::make_unique<NoJournal>();
        const auto record = peek_record(paths().disk_state(vm_.name, vm_.disks.front().name));
        if (record && is_under_way(*record)) {
            migration_ = record->migration;
        }
        disk_only_ = record && record->role == Role::forwarding;
        // Who is fenced without the hash of a refusal was told that nobody could refuse.
        plain_ = record && record->stage == Stage::fenced && record->refusal_hash.empty();
        return;
    }
    journal_ = *found;
    steps_ = Journal::go_on(path);
    migration_ = journal_.text("migration");
    disk_only_ = journal_.facts.value("disk_only", false);
    if (peer_.host.empty()) {
        peer_.host = journal_.text("host");
        peer_.rsh = journal_.text("rsh");
        peer_.to_uri = journal_.text("to_uri");
    }
    if (peer_.host == journal_.text("host")) {
        peer_.data_address = journal_.text("data_address");
    }
}

// The way to the agent that the coordinator had: it may hang on a dead link.
asio::awaitable<void> SourceRecovery::end_leftovers() {
    const pid_t pid = journal_.facts.value("rsh_pid", 0);
    const uint64_t started = journal_.facts.value("rsh_started", uint64_t{0});
    if (pid != 0) {
        co_await end_process(pid, started, leftover_patience);
    }
    ::unlink(paths().migrate_socket(vm_.name).c_str());
}

asio::awaitable<void> SourceRecovery::make_parts() {
    std::vector<VmDescription::Disk> description;
    for (const DiskSpec& disk : vm_.disks) {
        disks_.push_back(
            std::make_unique<SourceDisk>(executor_, site_, vm_.name, disk, changed_, nullptr));
        SourceDisk& here = *disks_.back();
        here.migration = migration_;
        parts_.disks.push_back(&here);
        co_await here.standing(); // it is served, if it can be
        VmDescription::Disk entry;
        entry.name = disk.name;
        entry.uuid = here.status().value("uuid", "");
        entry.size = here.status().value("size", uint64_t{0});
        entry.block_size = here.status().value("block_size", uint64_t{0});
        description.push_back(std::move(entry));
    }
    const bool driven = !disk_only_ && vm_.hypervisor != "none";
    hypervisor_ = driven ? make_outgoing(vm_) : std::make_unique<NoneOutgoing>();
    vm_here_ = std::make_unique<DrivenVm>(vm_.name, *hypervisor_, site_.timeouts);
    Json notes = journal_.facts.value("hypervisor_notes", Json::object());
    co_await attempt(vm_here_->reattach(std::move(notes)));
    const Json kept = journal_.facts.value("description", Json());
    const Json whole = kept.is_object() ? kept : describe(vm_, description);
    const bool asked = !journal_.last || *journal_.last != JournalStep::over;
    if (!peer_.host.empty() && asked) {
        agent_ = std::make_unique<PeerAgent>(executor_, site_, peer_, PeerAgent::Events());
        agent_->about(migration_, whole, disk_only_);
    }
    parts_.vm = vm_here_.get();
    parts_.there = agent_.get();
    parts_.plain = !peer_.to_uri.empty() || plain_;
    parts_.steps = steps_.get();
    parts_.forwards = disk_only_ && !journal_.facts.value("detach", false);
}

asio::awaitable<void> SourceRecovery::attempt(asio::awaitable<void> task) {
    try {
        co_await std::move(task);
    } catch (const std::exception& error) {
        result_.troubles.push_back(error.what());
    }
}

HookEnvironment SourceRecovery::hook_environment() const {
    HookEnvironment environment;
    environment.vm = vm_.name;
    environment.from = host_name();
    environment.to = there();
    environment.migration = migration_;
    return environment;
}

asio::awaitable<void> SourceRecovery::hook(std::string name, std::vector<std::string> command) {
    const milliseconds patience = site_.timeouts.hook;
    co_await attempt(run_hook(std::move(name), std::move(command), hook_environment(), patience));
}

// What it can't do is owed by itself, and neither the VM's nor the disks' affair.
asio::awaitable<void> SourceRecovery::settle_names(bool here) {
    try {
        const auto foreign = co_await settle_dns(site_, vm_, here, hook_environment());
        result_.troubles.insert(result_.troubles.end(), foreign.begin(), foreign.end());
    } catch (const std::exception& error) {
        result_.troubles.push_back(fmt::format(
            "{}. `drover dns {} --settle` does what is left to do there", error.what(), vm_.name));
    }
}

asio::awaitable<void> SourceRecovery::conclude_here(const Recovery& recovery) {
    result_.stuck = recovery.stuck();
    if (!result_.stuck) { // else the VM does not run here yet
        if (hypervisor_->has_memory()) {
            co_await attempt(settle_tunnels(vm_.name, true));
        }
        co_await hook("failed", vm_.hooks.failed);
        co_await settle_names(true);
    }
    result_.owed = recovery.more_to_do();
    if (!result_.owed) {
        co_await attempt(steps_->step(JournalStep::over));
    }
    result_.text =
        fmt::format("{} is this host's{}",
                    vm_.name,
                    !hypervisor_->has_memory() ? ", and goes on here"
                    : recovery.runs_here()     ? ", and runs here"
                    : result_.stuck ? ", but its hypervisor does not run it yet (see the warnings)"
                                    : ", but does not run: start it here");
    if (recovery.forced()) {
        result_.text += fmt::format(". It was taken back by force: should {} come back, nothing of "
                                    "{} may run there; `drover recover {}` tells it",
                                    there(),
                                    vm_.name,
                                    vm_.name);
    }
}

asio::awaitable<void> SourceRecovery::see_rest_across() {
    PostcopyNews news;
    news.progress = [](const MemoryProgress&) {};
    news.warning = [this](const std::string& text) {
        fmt::print(stderr, "{}: {}\n", vm_.name, text);
    };
    std::string address = data_address(peer_);
    co_await see_memory_across(*hypervisor_, *agent_, std::move(address), std::move(news));
}

asio::awaitable<void> SourceRecovery::conclude_there(const Recovery& recovery) {
    const size_t before = result_.troubles.size();
    Recovery::Trouble trouble = [this](const std::string& text) {
        result_.troubles.push_back(text);
    };
    co_await hook("post-switchover", vm_.hooks.post_switchover); // the guest runs there already
    if (agent_) {
        co_await attempt(see_rest_across());
    }
    co_await let_go(parts_, std::move(trouble));
    if (hypervisor_->has_memory()) {
        co_await attempt(settle_tunnels(vm_.name, false));
    }
    if (!disk_only_) {
        for (const auto& disk : disks_) {
            try {
                stop_disk(site_, vm_.name, disk->name());
            } catch (const std::exception& error) {
                result_.troubles.push_back(error.what());
            }
        }
    }
    result_.forwards = parts_.forwards;
    result_.owed = result_.troubles.size() != before;
    if (!result_.owed) {
        co_await attempt(steps_->step(JournalStep::over));
    }
    co_await settle_names(false);
    result_.text = fmt::format("{} belongs to {}{}",
                               vm_.name,
                               there(),
                               recovery.runs_there() ? ", and goes on there"
                                                     : ", but does not run: start it there");
}

void SourceRecovery::conclude_undecided(const Recovery& recovery) {
    result_.owed = true;
    result_.text = recovery.is_unanswered()
                       ? fmt::format("{0}: its disks have been given up here (migration {1}), and "
                                     "{2}, which may have taken "
                                     "them over, gives no answer ({3}). So it is started nowhere: "
                                     "it may run at {2}, and to "
                                     "run it here as well would split its data in two for good. "
                                     "When {2} can be reached "
                                     "again, `drover recover {0}` brings it up where it belongs. "
                                     "Only if {2} is switched "
                                     "off or lost for good, and never comes back with these disks: "
                                     "`drover recover {0} "
                                     "--i-know-the-other-side-is-dead` takes it back; what it has "
                                     "written there is lost",
                                     vm_.name,
                                     migration_,
                                     there().empty() ? "the other side" : there(),
                                     recovery.why())
                       : fmt::format("{}: {}", vm_.name, recovery.why());
}

} // namespace drover
