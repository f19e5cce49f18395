// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/check_options.h"

#include <filesystem>

namespace drover {
namespace {

void check_release(const VmFile& vm, const MigrateOptions& options) {
    if (options.disk_only && !options.detach) {
        throw Error(ErrorKind::usage,
                    "--release-source with --disk-only needs --detach: else the disks are still "
                    "served here");
    }
    for (const DiskSpec& disk : vm.disks) {
        if (disk.store.file.empty() || !std::filesystem::is_regular_file(disk.store.file)) {
            throw Error(ErrorKind::usage,
                        fmt::format("--release-source: disk {} of {} is not an image file",
                                    disk.name,
                                    vm.name));
        }
    }
}

} // namespace

// Else each try would be given up before its end.
void check_downtime(const SiteConfig& site, uint64_t downtime_ms) {
    if (std::chrono::milliseconds(downtime_ms) >= site.timeouts.handover) {
        throw Error(ErrorKind::usage,
                    fmt::format("a downtime of {} ms is more than 'handover' of [timeouts] in "
                                "drover.toml allows: {} s",
                                downtime_ms,
                                site.timeouts.handover.count()));
    }
}

void check_options(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options) {
    const std::string& to = options.peer.to_uri;
    if (!to.empty() && vm.disks.size() > 1 && to.find("{disk}") == std::string::npos) {
        throw Error(
            ErrorKind::usage,
            fmt::format("{} has {} disks: --to must have {{disk}} in it where their names go",
                        vm.name,
                        vm.disks.size()));
    }
    if (options.release_source) {
        check_release(vm, options);
    }
    check_downtime(site, options.downtime_ms);
}

} // namespace drover
