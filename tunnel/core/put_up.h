// SPDX-License-Identifier: GPL-2.0-or-later
// What a tunnel has put up on its host, as its state file says it (docs/state-files.md): written
// before it is put up, so that it can be taken down whatever happens. Pure; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace drover::tunnel {

enum class Role { home, away };

struct PutUp {
    std::string tunnel; // its name
    Role role = Role::home;
    std::string identity;  // of the NIC
    std::string at;        // home: the bridge; away: the VM's port
    std::string table;     // of nft; "" at home
    bool switched = false; // home: the VM's frames go across; away: they are delivered
    // Home, while it is switched: where the bridge had the VM's MAC before, and how firmly (NUD_*).
    std::string port = {};
    uint16_t port_state = 0;
    bool operator==(const PutUp&) const = default;
};

std::string put_up_text(const PutUp& put_up);
// Throws Error(refused) for what is damaged, foreign or newer; `name` is the file's.
PutUp parse_put_up(std::string_view bytes, const std::string& name);

} // namespace drover::tunnel
