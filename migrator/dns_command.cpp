// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_command.h"

#include "migrator/cli.h"
#include "migrator/dns_change.h"
#include "migrator/host_facts.h"
#include "migrator/journal.h"
#include "migrator/paths.h"
#include "migrator/recover.h"
#include "migrator/run_alone.h"

#include <signal.h>

namespace drover {
namespace {

using Foreign = std::vector<std::string>;

Foreign move(const SiteConfig& site, const VmFile& vm, const std::string& host) {
    HookEnvironment environment;
    environment.vm = vm.name;
    environment.from = host_name();
    environment.to = host;
    asio::io_context context(1);
    return run_alone(context, move_dns(site, vm, std::move(environment)));
}

// Without a migration.
void begin(const VmFile& vm, const std::string& host, bool lower) {
    const DnsState state = survey_dns(vm, "", host);
    if (lower) {
        lower_dns(vm, state);
    } else {
        keep_dns_state(vm, state);
    }
}

Foreign settle(const SiteConfig& site, const VmFile& vm) {
    const auto state = read_dns_state(vm.name);
    if (!state) {
        fmt::print("{}: nothing is left to do\n", vm.name);
        return {};
    }
    return state->moved ? move(site, vm, state->host) : restore_dns(vm);
}

void show(const VmFile& vm) {
    const DnsState now = survey_dns(vm, "", "");
    for (const auto& entry : now.entries) {
        fmt::print("{}\n", text_of(entry.before));
    }
    if (const auto owed = read_dns_state(vm.name)) {
        fmt::print("{}: {}\n",
                   vm.name,
                   owed->moved ? fmt::format("they are to become those of {}", owed->host)
                               : std::string("their TTL is lowered, and shown as it was before"));
    }
}

} // namespace

int run_dns(const SiteConfig& site, const VmFile& vm, const DnsOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    if (!vm.network.dns) {
        throw Error(ErrorKind::usage, fmt::format("{} has no [network.dns]", vm.path));
    }
    Foreign foreign;
    if (!options.lower && !options.restore && !options.settle && options.moved_host.empty()) {
        show(vm);
        return exit_done;
    }
    const RunLock lock = lock_coordinator(vm.name, "dns");
    if (const auto journal = read_journal(paths().journal(vm.name)); journal && !journal->over()) {
        throw Error(
            ErrorKind::state,
            fmt::format("a migration of {0} has not come to its end, and its names with it: "
                        "`drover recover {0}` first",
                        vm.name));
    }
    if (options.lower) {
        begin(vm, "", true);
    } else if (options.restore) {
        foreign = restore_dns(vm);
    } else if (options.settle) {
        foreign = settle(site, vm);
    } else {
        begin(vm, options.moved_host, false);
        foreign = move(site, vm, options.moved_host);
    }
    for (const std::string& text : foreign) {
        fmt::print(stderr, "drover: {}\n", text);
    }
    if (foreign.empty()) {
        show(vm);
    }
    return foreign.empty() ? exit_done : exit_failed;
}

} // namespace drover
