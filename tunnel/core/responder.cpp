// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/responder.h"

#include "tunnel/core/compose.h"

namespace drover::tunnel {

std::optional<Frame> answer_for(const Nic& nic, const Parsed& parsed) {
    if (parsed.source == nic.mac) {
        return std::nullopt;
    }
    if (parsed.arp && parsed.arp->operation == 1 && nic.has_address(parsed.arp->target) &&
        parsed.arp->sender != parsed.arp->target) {
        return arp_frame(parsed.source,
                         2,
                         nic.mac,
                         parsed.arp->target,
                         parsed.arp->sender_mac,
                         parsed.arp->sender);
    }
    if (parsed.ip && parsed.ip->icmp_type == nd_solicit && parsed.ip->nd_target &&
        nic.has_address(*parsed.ip->nd_target)) {
        const Ip& asker = parsed.ip->source;
        return asker.is_unspecified()
                   ? neighbour_advert(
                         all_nodes_mac, nic.mac, *parsed.ip->nd_target, all_nodes, advert_override)
                   : neighbour_advert(parsed.source,
                                      nic.mac,
                                      *parsed.ip->nd_target,
                                      asker,
                                      advert_solicited | advert_override);
    }
    return std::nullopt;
}

std::vector<Frame> announcements(const Nic& nic) {
    std::vector<Frame> frames;
    for (const Prefix& prefix : nic.addresses) {
        const Ip& ip = prefix.address;
        frames.push_back(
            ip.version == 4
                ? arp_frame(Mac::broadcast(), 1, nic.mac, ip, Mac{}, ip)
                : neighbour_advert(all_nodes_mac, nic.mac, ip, all_nodes, advert_override));
    }
    return frames;
}

} // namespace drover::tunnel
