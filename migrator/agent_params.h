// SPDX-License-Identifier: GPL-2.0-or-later
// Parameters of the agent's methods: what a peer sends, checked before anything is done with it.
// The description of a VM has a check of its own, check_description() in vm_file.h.
#pragma once

#include "common/json_rpc.h"

#include <string>
#include <vector>

namespace drover {

// Exactly so many lower-case hexadecimal digits. Both throw Error(usage).
std::string hex_param(const rpc::Json& params, const char* key, size_t digits);

// `vm`, and `disks`: some of it, by their names; with_uuids: each {"name", "uuid"}.
struct NamedDisks {
    struct Disk {
        std::string name;
        std::string uuid; // as it came, or "" without
    };
    std::string vm;
    std::vector<Disk> disks;
};
NamedDisks named_disks_param(const rpc::Json& params, bool with_uuids = false);

} // namespace drover
