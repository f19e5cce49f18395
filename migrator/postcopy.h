// SPDX-License-Identifier: GPL-2.0-or-later
// The rest of a VM's memory, after a switchover that has left some of it behind (post-copy): the
// guest runs at the destination, and what it touches comes from here. Who sees it across: the
// coordinator, and after its death its guardian or `drover recover`.
#pragma once

#include "migrator/driver.h"
#include "migrator/peer_agent.h"

#include <functional>
#include <string>

namespace drover {

struct PostcopyNews {
    std::function<void(const MemoryProgress&)> progress; // twice a second
    std::function<void(const std::string&)> warning;
};

// Returns when all of it is there: whether some of it was left. A link that breaks, or carries
// nothing for a while, is replaced, for as long as both hypervisors live: the guest waits meanwhile
// for what it touches. Throws Error(state) where one of them is certainly gone, and with it the
// guest. here and there outlive it; data_address: where the destination's ports are.
asio::awaitable<bool>
see_memory_across(OutgoingVm& here, PeerAgent& there, std::string data_address, PostcopyNews news);

} // namespace drover
