// SPDX-License-Identifier: GPL-2.0-or-later
// `drover dns`: the DNS records of a VM ([network.dns] of its file), by hand.
#pragma once

#include "migrator/config.h"

namespace drover {

struct DnsOptions {
    bool lower = false;     // the TTL of the move, from now on
    bool restore = false;   // back to the TTL that was
    bool settle = false;    // what a migration has left to do
    std::string moved_host; // the VM runs there: its new addresses
};

// One of these, or shows them. The exit status: exit_failed where somebody else has changed
// records. Throws Error.
int run_dns(const SiteConfig& site, const VmFile& vm, const DnsOptions& options);

} // namespace drover
