// SPDX-License-Identifier: GPL-2.0-or-later
// How a VM's memory goes, for the whole of a migration: both ends are told. What a hypervisor
// can't do is refused where it is asked for it.
#pragma once

#include "common/json_rpc.h"

#include <string>

namespace drover {

struct MemoryWays {
    std::string compress = "none"; // or "xbzrle" (what has changed of a page), "zstd"
    unsigned connections = 1;      // TCP, 1 to most_connections
    bool auto_converge = false;    // its processors are slowed down while it changes more than goes
    bool postcopy = false;         // it may run at the destination before all of it is there

    static constexpr unsigned most_connections = 16;

    bool operator==(const MemoryWays&) const = default;
    // Throws Error(usage) where one of them keeps another from working.
    void check() const;
    // As the agent's `incoming` has it; and back, checked.
    rpc::Json json() const;
    static MemoryWays of(const rpc::Json& json);
};

// Post-copy, of the memory of a guest that runs at the destination: what that says, asked whether a
// new link would help.
enum class MemoryWait {
    waits, // for the rest, on the new link
    whole, // nothing is to come
    gone,  // certainly: there is no hypervisor any more, and no guest
};

} // namespace drover
