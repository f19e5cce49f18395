// SPDX-License-Identifier: GPL-2.0-or-later
// What a DHCPv4 message says (RFC 2131), as far as the tunnel looks. Pure; any thread.
#pragma once

#include "tunnel/core/address.h"

namespace drover::tunnel {

inline constexpr uint16_t dhcp_server_port = 67, dhcp_client_port = 68;

struct DhcpMessage {
    enum Type : uint8_t { none = 0, request = 3, decline = 4, nak = 6, release = 7, inform = 8 };

    bool from_client = false;
    uint8_t type = none; // option 53
    Mac client;
    Ip client_ip, your_ip;       // ciaddr, yiaddr; 0.0.0.0: not filled in
    std::optional<Ip> requested; // option 50
};

// nullopt for what is not one of an Ethernet client, or is cut off. Options in the fields of the
// names (option 52) are not looked at.
std::optional<DhcpMessage> parse_dhcp(Bytes payload);

} // namespace drover::tunnel
