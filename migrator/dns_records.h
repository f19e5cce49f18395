// SPDX-License-Identifier: GPL-2.0-or-later
// What becomes of a VM's DNS records as it moves, and what is kept of them meanwhile. Pure; any
// thread.
#pragma once

#include "migrator/dns_message.h"

#include <map>

namespace drover {

// $DROVER_STATE/VM/dns.state, from before the first record is changed until the last one is as it
// has to be (docs/state-files.md): whoever finds it later can go on.
struct DnsState {
    struct Entry {
        std::string zone;
        DnsRecords before; // also of what a name has none
        bool operator==(const Entry&) const = default;
    };
    std::string migration;      // "": by hand
    std::string host;           // where the VM moves
    uint32_t ttl = 0;           // seconds, while it moves
    bool moved = false;         // the VM runs there: its names are to have the new addresses
    std::vector<Entry> entries; // A and AAAA of each name, PTR of each old address
    bool operator==(const DnsState&) const = default;
};
std::string dns_state_text(const DnsState& state);
// Throws Error(refused) for what is damaged, foreign or newer; `path` is for the text.
DnsState parse_dns_state(std::string_view bytes, const std::string& path);

// A set of records, and what it is to become.
struct DnsGoal {
    std::string zone;
    DnsRecords before, to;
};
using DnsGoals = std::vector<DnsGoal>;

// The TTL of those that have a longer one is that of the move; back to what it was.
DnsGoals lowered(const DnsState& state);
DnsGoals restored(const DnsState& state);
// The names have these addresses, valid ones, and no other, with the TTL that they had. Of PTR
// records those that name one of the VM's names go, but for an address that stays.
DnsGoals moved(const DnsState& state, const std::set<std::string>& addresses);
// The PTR of a new address, which is not among the entries.
DnsGoal new_ptr(const DnsState& state,
                const std::string& zone,
                const std::string& address,
                const std::string& name);
// The old addresses.
std::set<std::string> addresses_of(const DnsState& state);
// Those that it has the A and AAAA of.
std::set<std::string> names_of(const DnsState& state);

enum class DnsStanding {
    open,    // to be updated
    reached, // as it has to be
    foreign, // somebody else has changed it
};
DnsStanding standing_of(const DnsState& state, const DnsGoal& goal, const DnsRecords& now);

// A state that is made anew: what an earlier one has lowered keeps the TTL that it had.
void keep_ttls(DnsState& state, const DnsState& earlier);

} // namespace drover
