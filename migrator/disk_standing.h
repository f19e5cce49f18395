// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "common/json_rpc.h"
#include "nbd-proxy/core/ownership.h"

#include <string>

namespace drover {

// Of a disk's record, what decides about it.
struct DiskStanding {
    Role role = Role::replica;
    Stage stage = Stage::idle;
    uint64_t generation = 0;
    std::string migration; // the present one, or the last
    bool may_have_run = false;
    bool in_use = false; // a client has it open; known of served disks only
};

// Of a status, or of an entry of an agent's list, whatever else it says. Throws Error(peer).
DiskStanding standing_of(const rpc::Json& status);

} // namespace drover
