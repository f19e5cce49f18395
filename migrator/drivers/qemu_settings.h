// SPDX-License-Identifier: GPL-2.0-or-later
// What both ends of a QEMU migration set in the same way.
#pragma once

#include "migrator/driver.h"
#include "migrator/qmp.h"

#include <array>

namespace drover::qemu {

// For a command that QEMU answers at once.
inline constexpr milliseconds command_patience{10000};
// The id of the credentials object that a migration adds to QEMU.
inline constexpr const char* credentials = "drover-migration";

// States of a migration, at both ends.
inline constexpr const char* postcopy_going = "postcopy-active";
inline constexpr const char* postcopy_broken = "postcopy-paused";

// For the next migration: these capabilities, and how its memory goes.
asio::awaitable<void>
set_ways(std::shared_ptr<Qmp> qmp, std::vector<std::string> capabilities, MemoryWays ways);
// What of it was otherwise before, and is to be put back.
inline constexpr std::array<const char*, 5> ways_capabilities{
    "pause-before-switchover", "auto-converge", "xbzrle", "multifd", "postcopy-ram"};
inline constexpr std::array<const char*, 6> ways_parameters{"downtime-limit",
                                                            "max-bandwidth",
                                                            "max-postcopy-bandwidth",
                                                            "multifd-channels",
                                                            "multifd-compression",
                                                            "tls-creds"};

// Writes the key to key_dir/keys.psk, makes the credentials (replacing what an attempt that died
// has left) and sets them for the next migration. endpoint: "server" or "client".
asio::awaitable<void> add_credentials(std::shared_ptr<Qmp> qmp,
                                      std::string endpoint,
                                      MemoryLink link,
                                      std::string key_dir);
// The key alone, for a server that has its credentials already and reads the key again.
void write_key(const MemoryLink& link, const std::string& key_dir);
// Of query-migrate-parameters and query-migrate: a coordinator that was killed, or a dead link, has
// left a migration of ours.
bool is_leftover(const Qmp::Json& parameters, const Qmp::Json& migration);
void remove_keys(const std::string& key_dir);

// "tcp:HOST:PORT"; "*" is every address, IPv6 literals get their brackets.
std::string migration_uri(const MemoryLink& link);

} // namespace drover::qemu
