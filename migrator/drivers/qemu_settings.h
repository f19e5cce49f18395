// SPDX-License-Identifier: GPL-2.0-or-later
// What both ends of a QEMU migration set in the same way.
#pragma once

#include "migrator/driver.h"
#include "migrator/qmp.h"

namespace drover::qemu {

// For a command that QEMU answers at once.
inline constexpr milliseconds command_patience{10000};
// The id of the credentials object that a migration adds to QEMU.
inline constexpr const char* credentials = "drover-migration";

asio::awaitable<void> set_capabilities(std::shared_ptr<Qmp> qmp, std::vector<std::string> on);

// Writes the key to key_dir/keys.psk, makes the credentials (replacing what an attempt that died
// has left) and sets them for the next migration. endpoint: "server" or "client".
asio::awaitable<void> add_credentials(std::shared_ptr<Qmp> qmp,
                                      std::string endpoint,
                                      MemoryLink link,
                                      std::string key_dir);
// Of query-migrate-parameters and query-migrate: a coordinator that was killed, or a dead link, has
// left a migration of ours.
bool is_leftover(const Qmp::Json& parameters, const Qmp::Json& migration);
void remove_keys(const std::string& key_dir);

// "tcp:HOST:PORT"; "*" is every address, IPv6 literals get their brackets.
std::string migration_uri(const MemoryLink& link);

} // namespace drover::qemu
