// SPDX-License-Identifier: GPL-2.0-or-later
// The names of a VM that moves get its new addresses ([network.dns] of its file):
//
//   before anything is touched    survey_dns   its records, and whether the key may update them
//   as the migration begins       lower_dns    they get the TTL of the move
//   the VM runs there             move_dns     new addresses, PTR records, the TTL that was
//   it stays here                 restore_dns  the TTL that was
//
// Each but the first is asked about at the server after it was done, and may be done again: what is
// owed is in a file (dns_records.h) until then. What somebody else has changed meanwhile is left
// alone, and told.
//
// Those that give no awaitable block, for half a minute at most; the VM's lock is the caller's.
#pragma once

#include "migrator/dns_records.h"
#include "migrator/dns_server.h"
#include "migrator/hooks.h"

namespace drover {

// How long a guardian tries again what could not be done.
inline constexpr std::chrono::minutes dns_patience{10};

// Whether a migration changes them: the VM, as far as is known, runs elsewhere afterwards.
bool moves_dns(const VmFile& vm, bool disk_only, bool detach, bool to_plain_server);

// nullopt: nothing is owed. Throws Error(refused), Error(io).
std::optional<DnsState> read_dns_state(const std::string& vm);

// Changes nothing. `host` empty: it is not known where the VM goes. Throws Error(usage) for a HOST
// whose addresses the VM's file does not say; Error(refused) for a name without an address, or in
// no zone of the server, for a key that may not update one of the records; Error(peer, timeout).
DnsState survey_dns(const VmFile& vm, const std::string& migration, const std::string& host);
// It is owed from now on. Throws Error(io).
void keep_dns_state(const VmFile& vm, const DnsState& state);
// The same, and lowers them. Throws Error(state) where somebody else has changed them since the
// survey.
void lower_dns(const VmFile& vm, const DnsState& state);
// What is told of records that somebody else has changed. Nothing is owed then. Throws Error, and
// it is owed further on; Error(usage) where the VM's file has no [network.dns].
std::vector<std::string> restore_dns(const VmFile& vm);

// Likewise. `environment`: for the hook that says the new addresses, and its `to` the HOST.
asio::awaitable<std::vector<std::string>>
move_dns(const SiteConfig& site, VmFile vm, HookEnvironment environment);
// What is owed of the environment's migration, of which the VM runs here, or there: one of these
// two. Nothing, where nothing is.
asio::awaitable<std::vector<std::string>>
settle_dns(const SiteConfig& site, VmFile vm, bool here, HookEnvironment environment);

// One on each line, no other text. Throws Error(refused).
std::set<std::string> parse_printed_addresses(const std::string& printed);

} // namespace drover
