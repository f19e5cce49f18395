// SPDX-License-Identifier: GPL-2.0-or-later
// Which frames the tunnel carries: those of the addresses that the migration named, and what keeps
// neighbours' caches for these right. Both ends ask it in both directions, so a hostile peer gets
// nothing else past the other one. Pure; const, so any thread.
#pragma once

#include "tunnel/core/packet.h"

namespace drover::tunnel {

// A network interface of the VM as it was at the source.
struct Nic {
    Mac mac;
    std::vector<Prefix> addresses; // old ones; their networks were on-link there
    std::vector<Ip> gateways;      // old ones outside of these networks: link-local, usually
    std::vector<Ip> link_locals;   // its own, but the one that is made from its MAC

    bool has_address(const Ip& ip) const;
    bool has_link_local(const Ip& ip) const;
    // Was the VM's neighbour there: in a network of its, or one of the gateways.
    bool is_neighbour(const Ip& ip) const;
};

// The same text for the same NIC, in whichever order it was given.
std::string identity_of(const Nic& nic);
std::optional<Mac> mac_in_identity(std::string_view identity);

class AddressFilter {
public:
    explicit AddressFilter(Nic nic) : nic_(std::move(nic)) {}

    // A frame that the VM sent, as the old segment may see it: from its MAC and an old address.
    // Neighbour discovery only for its own addresses, or asking for its neighbours' or for routers;
    // to all, otherwise, only what DHCP says of a lease of an old address.
    bool from_vm(const Parsed& frame) const;
    // A frame for the VM: to an old address and its MAC, an answer to its questions, or a change of
    // a neighbour's MAC that is told to all, or a DHCP server's answer. Not one from its own MAC.
    bool to_vm(const Parsed& frame) const;

    const Nic& nic() const { return nic_; }

private:
    bool is_own(const Ip& ip) const { return nic_.has_address(ip) || nic_.has_link_local(ip); }
    bool has_ipv6() const;
    bool dhcp_from_vm(const IpPacket& ip) const;
    bool dhcp_to_vm(const IpPacket& ip) const;
    bool nd_from_vm(const IpPacket& ip) const;
    bool nd_to_vm(const IpPacket& ip) const;

    Nic nic_;
};

} // namespace drover::tunnel
