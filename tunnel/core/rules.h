// SPDX-License-Identifier: GPL-2.0-or-later
// The packet filter's rules of the away end, as text for libnftables. Pure; any thread.
#pragma once

#include "tunnel/core/address_filter.h"

namespace drover::tunnel {

// The table of the tunnel NAME: the same name each time, no other tunnel's, and an nft identifier.
std::string table_name(std::string_view tunnel);

// At the VM's own port: what it sends from an old address goes into `device`, before the bridge or
// the host's IP stack see it, and what comes out of `device` goes to the VM and nowhere else. What
// this site says of the old networks does not reach the VM: they may be in use here too. Nor do
// this site's routers, if the VM has old IPv6 addresses, and its DHCP servers get no request for an
// old lease. The table
// is replaced whole, in one transaction.
std::string away_rules(const std::string& table,
                       const std::string& port,
                       const std::string& device,
                       const Nic& nic);

// No error if it is not there.
std::string remove_rules(const std::string& table);

} // namespace drover::tunnel
