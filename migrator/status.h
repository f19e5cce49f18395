// SPDX-License-Identifier: GPL-2.0-or-later
// `drover status`: what runs, from the control sockets; of a disk that is not being served, what
// its record says.
#pragma once

#include "migrator/config.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace drover {

// What this host knows of a VM.
struct KnownVm {
    std::string name;
    std::vector<std::string> disks; // as in the VM file, then what else is served or on record
};
// Also without a VM file, as long as one of its disks is served or on record. Throws
// Error(usage) if nothing is known.
KnownVm find_known(const SiteConfig& site, const std::string& name_or_path);

struct StatusOptions {
    bool json = false;
    bool watch = false; // again each second, until a signal
};

// The VM, or all that this host knows of. Returns the exit status; throws Error(usage) for a VM
// that is not known here.
int run_status(const SiteConfig& site,
               const std::optional<std::string>& vm,
               const StatusOptions& options);

// {"name", "disks": [{"name", "served", "socket", "port", "status": as of the plugin or null,
// "record": {"uuid", "generation", "role", "stage", "migration"} or null, "error": text or
// null}], "migration": as the coordinator says it, or null}. Never throws for what
// does not answer: that is in "error".
nlohmann::json vm_status(const std::string& vm, const std::vector<std::string>& disks);

// For people; one line a disk.
std::string status_table(const std::vector<nlohmann::json>& vms);

} // namespace drover
