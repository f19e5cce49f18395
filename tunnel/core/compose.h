// SPDX-License-Identifier: GPL-2.0-or-later
// Frames of ARP, RARP and neighbour discovery, with right checksums. Pure; any thread.
#pragma once

#include "tunnel/core/packet.h"

namespace drover::tunnel {

inline const Ip all_nodes{6, {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
inline constexpr Mac all_nodes_mac{{0x33, 0x33, 0, 0, 0, 1}};
inline constexpr uint8_t advert_solicited = 0x40, advert_override = 0x20;

// `ip` and `target` are IPv4. The Ethernet source is `mac`.
Frame arp_frame(const Mac& to,
                uint16_t operation,
                const Mac& mac,
                const Ip& ip,
                const Mac& target_mac,
                const Ip& target);
// What switches learn a MAC from, and nobody answers: a request of RFC 903 for its own address.
Frame reverse_arp_frame(const Mac& mac);
// RFC 4861, 4.4, with the option of the target's link-layer address. `flags`: advert_*.
Frame neighbour_advert(
    const Mac& to, const Mac& mac, const Ip& ip, const Ip& destination, uint8_t flags);
// As duplicate address detection asks (RFC 4862): from no address, to the solicited-node group of
// `target`, with the option of a nonce (RFC 3971, 5.3.2).
Frame duplicate_solicit(const Mac& mac, const Ip& target, const std::array<uint8_t, 14>& nonce);

} // namespace drover::tunnel
