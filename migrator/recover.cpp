// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/recover.h"

#include "migrator/destination_recovery.h"
#include "migrator/dns_change.h"
#include "migrator/host_facts.h"
#include "migrator/paths.h"
#include "migrator/run_alone.h"
#include "migrator/status.h"
#include "migrator/vm_file.h"

#include <signal.h>

namespace drover {
namespace {

// A recovery asks a peer that may not answer, and waits for agents to end.
constexpr milliseconds recovery_patience{150000};

SourceRecovery::Result
recover_source(const SiteConfig& site, const VmFile& vm, const PeerOptions& peer, bool force) {
    asio::io_context context(1);
    SourceRecovery recovery(context.get_executor(), site, vm, peer, force);
    try {
        return run_alone(context, recovery.run());
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {
        // Nobody has foreseen it, so nothing is known.
        SourceRecovery::Result result;
        result.verdict = Verdict::undecided;
        result.owed = true;
        result.text = fmt::format("{}: {}", vm.name, error.what());
        return result;
    }
}

void tell(const SourceRecovery::Result& result) {
    for (const std::string& trouble : result.troubles) {
        fmt::print(stderr, "drover: warning: {}\n", trouble);
    }
    if (result.verdict == Verdict::undecided) {
        fmt::print(stderr, "drover: {}\n", result.text);
    } else {
        fmt::print("{}\n", result.text);
    }
    std::fflush(stdout);
}

int status_of(const SourceRecovery::Result& result) {
    switch (result.verdict) {
    case Verdict::here:
        return result.stuck ? exit_recover : exit_done;
    case Verdict::there:
        return result.owed ? exit_cleanup : exit_done;
    case Verdict::undecided:
        break;
    }
    return exit_recover;
}

std::optional<SourceRecovery::Result> recover_if_needed(const SiteConfig& site, const VmFile& vm) {
    if (!SourceRecovery::is_needed(vm.name, vm.disks.front().name)) {
        return std::nullopt;
    }
    SourceRecovery::Result result = recover_source(site, vm, PeerOptions(), false);
    tell(result);
    return result;
}

int recover_destination(const SiteConfig& site,
                        const std::string& vm,
                        const RecoverOptions& options) {
    asio::io_context context(1);
    DestinationRecovery recovery(
        context.get_executor(), site, vm, options.peer, options.other_side_is_dead);
    const DestinationRecovery::Result result = run_alone(context, recovery.run());
    fmt::print(result.status == exit_done ? stdout : stderr, "{}\n", result.text);
    std::fflush(stdout);
    return result.status;
}

} // namespace

RunLock lock_coordinator(const std::string& vm, const std::string& what) {
    make_directories(paths().vm_state(vm), 0700);
    RunLock lock(paths().migrate_lock(vm));
    if (lock.try_lock(what)) {
        return lock;
    }
    const auto holder = lock.holder();
    if (holder && holder->what != "migrate") {
        asio::io_context context(1);
        if (run_alone(context, lock.lock_within(what, recovery_patience))) {
            return lock;
        }
        throw Error(ErrorKind::state,
                    fmt::format("a recovery of {} is under way (process {})", vm, holder->pid));
    }
    throw Error(ErrorKind::state,
                fmt::format("{} is being migrated already: `drover status {}` shows it, `drover "
                            "abort {}` ends it",
                            vm,
                            vm,
                            vm));
}

int run_recover(const SiteConfig& site,
                const std::string& name_or_path,
                const RecoverOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    const KnownVm known = find_known(site, name_or_path);
    if (DestinationRecovery::is_needed(known.name, known.disks.front())) {
        return recover_destination(site, known.name, options);
    }
    if (!SourceRecovery::is_needed(known.name, known.disks.front())) {
        fmt::print("{}: nothing is to be recovered here\n", known.name);
        return exit_done;
    }
    const VmFile vm = load_vm_file(site, name_or_path, HostCheck::may_be_missing);
    const RunLock lock = lock_coordinator(vm.name, "recover");
    if (!SourceRecovery::is_needed(vm.name, vm.disks.front().name)) {
        fmt::print("{}: nothing is to be recovered here\n", vm.name);
        return exit_done;
    }
    const SourceRecovery::Result result =
        recover_source(site, vm, options.peer, options.other_side_is_dead);
    tell(result);
    return status_of(result);
}

std::optional<SourceRecovery::Result> recover_if_free(const SiteConfig& site,
                                                      const VmFile& vm,
                                                      const std::string& migration,
                                                      const std::string& what) {
    try {
        RunLock lock(paths().migrate_lock(vm.name));
        if (!lock.try_lock(what)) {
            return std::nullopt;
        }
        const auto journal = read_journal(paths().journal(vm.name));
        if (!journal || journal->over() || journal->text("migration") != migration) {
            return std::nullopt;
        }
        return recover_source(site, vm, PeerOptions(), false);
    } catch (const std::exception& error) {
        SourceRecovery::Result result;
        result.owed = true;
        result.text = error.what();
        return result;
    }
}

bool settle_names_if_free(const SiteConfig& site,
                          const VmFile& vm,
                          const std::string& migration,
                          const std::function<void(const std::string&)>& tell) {
    if (!read_dns_state(vm.name)) {
        return true;
    }
    RunLock lock(paths().migrate_lock(vm.name));
    if (!lock.try_lock("guardian")) {
        return false;
    }
    const auto state = read_dns_state(vm.name);
    if (!state || state->migration != migration) {
        return true;
    }
    HookEnvironment environment;
    environment.vm = vm.name;
    environment.from = host_name();
    environment.to = state->host;
    environment.migration = migration;
    asio::io_context context(1);
    const auto foreign =
        run_alone(context, settle_dns(site, vm, !state->moved, std::move(environment)));
    for (const std::string& text : foreign) {
        tell(text);
    }
    return true;
}

std::optional<int> recover_served(const SiteConfig& site, const VmFile& vm) {
    ::signal(SIGPIPE, SIG_IGN);
    if (DestinationRecovery::is_needed(vm.name, vm.disks.front().name)) {
        const int status = recover_destination(site, vm.name, RecoverOptions());
        return status == exit_done ? std::nullopt : std::optional(status);
    }
    make_directories(paths().vm_state(vm.name), 0700);
    RunLock lock(paths().migrate_lock(vm.name));
    if (!lock.try_lock("recover")) {
        return std::nullopt;
    }
    const auto result = recover_if_needed(site, vm);
    if (!result || result->forwards) {
        return std::nullopt;
    }
    if (result->verdict == Verdict::here && !result->stuck) {
        return std::nullopt;
    }
    return result->verdict == Verdict::there ? exit_cleanup : exit_recover;
}

std::optional<int> recover_at_start(const SiteConfig& site, const VmFile& vm) {
    const auto result = recover_if_needed(site, vm);
    if (!result) {
        return std::nullopt;
    }
    if (result->verdict != Verdict::here || result->stuck) {
        return status_of(*result);
    }
    // What the destination has yet to clean up is not in the way of anything here.
    Journal::end(paths().journal(vm.name));
    return std::nullopt;
}

} // namespace drover
