// SPDX-License-Identifier: GPL-2.0-or-later
// What is asked of a migration that runs: `drover abort` and `drover set`.
#include "migrator/cli.h"
#include "migrator/ctl.h"
#include "migrator/paths.h"
#include "migrator/recover.h"
#include "migrator/status.h"

namespace drover {
namespace {

using rpc::Json;

// A coordinator answers when the VM runs at the source again and the destination is cleaned up:
// that may take a round trip or two, or the time-out of a dead link.
constexpr std::chrono::seconds abort_timeout{120};
constexpr std::chrono::seconds cancel_timeout{30}, set_timeout{30};

std::optional<ControlClient> connect_if_there(const std::string& path) {
    try {
        return ControlClient(path);
    } catch (const Error& error) {
        if (error.sys_errno() != ENOENT && error.sys_errno() != ECONNREFUSED) {
            throw;
        }
        return std::nullopt;
    }
}

bool replicating(ControlClient& disk) {
    const Json status = disk.call("status", Json::object(), cancel_timeout);
    return status.value("replication", Json()).is_object();
}

} // namespace

int run_abort(const SiteConfig& site, const std::string& name_or_path) {
    const KnownVm vm = find_known(site, name_or_path);
    if (auto coordinator = connect_if_there(paths().migrate_socket(vm.name))) {
        coordinator->call("abort", Json::object(), abort_timeout);
        fmt::print("{}: the migration is aborted\n", vm.name);
        return exit_done;
    }
    if (SourceRecovery::is_needed(vm.name, vm.disks.front())) {
        return run_recover(site, name_or_path, RecoverOptions());
    }
    bool cancelled = false;
    // In their order: the first disk's record decides, so nothing is cancelled behind it when it
    // refuses.
    for (const std::string& name : vm.disks) {
        auto disk = connect_if_there(paths().disk_control(vm.name, name));
        if (!disk || !replicating(*disk)) {
            continue;
        }
        try {
            disk->call("cancel", Json::object(), cancel_timeout);
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::state) {
                throw;
            }
            fmt::print(stderr,
                       "drover: {}/{}: {}; see RECOVERY in drover(1)\n",
                       vm.name,
                       name,
                       error.what());
            return exit_recover;
        }
        fmt::print("{}/{}: replication cancelled (no coordinator runs)\n", vm.name, name);
        cancelled = true;
    }
    if (!cancelled) {
        throw Error(ErrorKind::state, fmt::format("{}: no migration is running", vm.name));
    }
    return exit_done;
}

int run_set(const SiteConfig& site, const std::string& name_or_path, const SetOptions& options) {
    const KnownVm vm = find_known(site, name_or_path);
    auto coordinator = connect_if_there(paths().migrate_socket(vm.name));
    if (!coordinator) {
        throw Error(ErrorKind::state, fmt::format("{}: no migration is running", vm.name));
    }
    Json limits = Json::object();
    if (options.max_bandwidth) {
        limits["max_bandwidth"] = *options.max_bandwidth;
    }
    if (options.downtime_ms) {
        limits["downtime_ms"] = *options.downtime_ms;
    }
    coordinator->call("set", limits, set_timeout);
    return exit_done;
}

} // namespace drover
