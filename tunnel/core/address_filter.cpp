// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/address_filter.h"

#include <algorithm>

#include <fmt/format.h>

namespace drover::tunnel {
namespace {

constexpr uint8_t nd_redirect = 137;

const Ip all_hosts{4, {255, 255, 255, 255}};

bool is_nd(const IpPacket& ip) {
    return ip.protocol == ip_icmpv6 && ip.source.version == 6 &&
           ip.icmp_type >= nd_router_solicit && ip.icmp_type <= nd_redirect;
}

// RFC 4291, appendix A.
Ip link_local_of(const Mac& mac) {
    Ip ip{6, {0xfe, 0x80}};
    std::copy_n(mac.bytes.begin(), 3, ip.bytes.begin() + 8);
    ip.bytes[8] ^= 2;
    ip.bytes[11] = 0xff;
    ip.bytes[12] = 0xfe;
    std::copy_n(mac.bytes.begin() + 3, 3, ip.bytes.begin() + 13);
    return ip;
}

} // namespace

bool Nic::has_address(const Ip& ip) const {
    return std::any_of(addresses.begin(), addresses.end(), [&](const Prefix& prefix) {
        return prefix.address == ip;
    });
}

bool Nic::has_link_local(const Ip& ip) const {
    return ip == link_local_of(mac) ||
           std::find(link_locals.begin(), link_locals.end(), ip) != link_locals.end();
}

bool Nic::is_neighbour(const Ip& ip) const {
    return std::find(gateways.begin(), gateways.end(), ip) != gateways.end() ||
           (!has_address(ip) &&
            std::any_of(addresses.begin(), addresses.end(), [&](const Prefix& prefix) {
                return prefix.covers(ip);
            }));
}

std::string identity_of(const Nic& nic) {
    std::vector<std::string> parts;
    for (const Prefix& prefix : nic.addresses) {
        parts.push_back("address " + to_text(prefix));
    }
    for (const Ip& gateway : nic.gateways) {
        parts.push_back("gateway " + to_text(gateway));
    }
    for (const Ip& link_local : nic.link_locals) {
        parts.push_back("link-local " + to_text(link_local));
    }
    std::sort(parts.begin(), parts.end());
    return fmt::format("mac {} {}", to_text(nic.mac), fmt::join(parts, " "));
}

std::optional<Mac> mac_in_identity(std::string_view identity) {
    constexpr std::string_view word = "mac ";
    constexpr size_t digits = 17;
    return identity.starts_with(word) ? parse_mac(identity.substr(word.size(), digits))
                                      : std::nullopt;
}

bool AddressFilter::has_ipv6() const {
    return std::any_of(nic_.addresses.begin(), nic_.addresses.end(), [](const Prefix& prefix) {
        return prefix.address.version == 6;
    });
}

bool AddressFilter::from_vm(const Parsed& frame) const {
    if (frame.source != nic_.mac) {
        return false;
    }
    if (frame.arp) {
        const ArpPacket& arp = *frame.arp;
        const bool probe =
            arp.operation == 1 && arp.sender.is_unspecified() && nic_.has_address(arp.target);
        return arp.sender_mac == nic_.mac && (nic_.has_address(arp.sender) || probe);
    }
    if (!frame.ip) {
        return false;
    }
    if (is_nd(*frame.ip)) {
        return nd_from_vm(*frame.ip);
    }
    if (frame.destination.is_group()) {
        return frame.ip->dhcp && dhcp_from_vm(*frame.ip);
    }
    return nic_.has_address(frame.ip->source);
}

// About a lease of an old address, to all: rebinding, or asking for it again after a restart.
bool AddressFilter::dhcp_from_vm(const IpPacket& ip) const {
    const DhcpMessage& dhcp = *ip.dhcp;
    const bool known = dhcp.type == DhcpMessage::request || dhcp.type == DhcpMessage::decline ||
                       dhcp.type == DhcpMessage::release || dhcp.type == DhcpMessage::inform;
    return known && dhcp.from_client && dhcp.client == nic_.mac && ip.destination == all_hosts &&
           (ip.source.is_unspecified() || nic_.has_address(ip.source)) &&
           (nic_.has_address(dhcp.client_ip) ||
            (dhcp.requested && nic_.has_address(*dhcp.requested)));
}

// Its answer, where that goes to all: the address, or that the VM has to give it up.
bool AddressFilter::dhcp_to_vm(const IpPacket& ip) const {
    const DhcpMessage& dhcp = *ip.dhcp;
    return !dhcp.from_client && dhcp.client == nic_.mac && ip.destination == all_hosts &&
           (nic_.has_address(dhcp.your_ip) || dhcp.type == DhcpMessage::nak);
}

bool AddressFilter::nd_from_vm(const IpPacket& ip) const {
    if (ip.icmp_type == nd_router_solicit) {
        return has_ipv6() && (ip.source.is_unspecified() || is_own(ip.source));
    }
    if (!ip.nd_target || nic_.is_neighbour(ip.source)) {
        return false;
    }
    if (ip.icmp_type == nd_advert) {
        return nic_.has_address(*ip.nd_target) && is_own(ip.source);
    }
    if (ip.source.is_unspecified()) { // duplicate address detection
        return nic_.has_address(*ip.nd_target);
    }
    return is_own(ip.source) && nic_.is_neighbour(*ip.nd_target);
}

bool AddressFilter::to_vm(const Parsed& frame) const {
    if (frame.source == nic_.mac || frame.source.is_group() ||
        (frame.destination != nic_.mac && !frame.destination.is_group())) {
        return false;
    }
    if (frame.arp) {
        const ArpPacket& arp = *frame.arp;
        const bool told_to_all = arp.sender == arp.target;
        return !nic_.has_address(arp.sender) && arp.sender_mac != nic_.mac &&
               (nic_.has_address(arp.target) || (told_to_all && nic_.is_neighbour(arp.sender)));
    }
    if (!frame.ip || nic_.has_address(frame.ip->source)) {
        return false;
    }
    if (is_nd(*frame.ip)) {
        return nd_to_vm(*frame.ip);
    }
    if (frame.ip->dhcp && dhcp_to_vm(*frame.ip)) {
        return true;
    }
    return frame.destination == nic_.mac && nic_.has_address(frame.ip->destination);
}

bool AddressFilter::nd_to_vm(const IpPacket& ip) const {
    switch (ip.icmp_type) {
    case nd_solicit:
        return ip.nd_target && nic_.has_address(*ip.nd_target) &&
               (ip.source.is_unspecified() || nic_.is_neighbour(ip.source));
    case nd_advert:
        return ip.nd_target && nic_.is_neighbour(*ip.nd_target);
    case nd_router_advert:
        return std::find(nic_.gateways.begin(), nic_.gateways.end(), ip.source) !=
               nic_.gateways.end();
    default:
        return false;
    }
}

} // namespace drover::tunnel
