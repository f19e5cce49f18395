// SPDX-License-Identifier: GPL-2.0-or-later
// What a frame says, as far as the tunnel looks: Ethernet, ARP, IPv4, IPv6 with its extension
// headers, TCP, UDP, ICMP, neighbour discovery and DHCPv4. Pure; any thread. Every field is read
// within the bounds of the frame; what does not add up is not understood, and then not carried.
#pragma once

#include "tunnel/core/dhcp.h"

namespace drover::tunnel {

inline constexpr size_t ethernet_header = 14;
inline constexpr uint16_t type_ipv4 = 0x0800, type_arp = 0x0806, type_ipv6 = 0x86dd;
inline constexpr uint8_t ip_icmp = 1, ip_tcp = 6, ip_udp = 17, ip_icmpv6 = 58;
inline constexpr uint8_t nd_router_solicit = 133, nd_router_advert = 134, nd_solicit = 135,
                         nd_advert = 136;
namespace tcp_flag {
inline constexpr uint8_t fin = 1, syn = 2, rst = 4, psh = 8, ack = 16, cwr = 128;
}

// Big-endian, as on the wire; the caller has checked that they are there.
uint16_t get16(const uint8_t* at);
uint32_t get32(const uint8_t* at);
void put16(uint8_t* at, uint16_t value);
void put32(uint8_t* at, uint32_t value);

// The one's complement sum of RFC 1071, not yet folded nor inverted: sums can be added up.
uint32_t sum_words(Bytes bytes, uint32_t sum = 0);
uint16_t folded_checksum(uint32_t sum);

struct ArpPacket {
    uint16_t operation = 0; // 1 request, 2 reply
    Mac sender_mac, target_mac;
    Ip sender, target;
};

struct IpPacket {
    Ip source, destination;
    uint8_t protocol = 0;        // the last header's
    size_t header = 0;           // offset of the IP header in the frame
    size_t payload = 0;          // offset of what is behind all IP headers
    size_t end = 0;              // of the packet in the frame; what follows is padding
    bool later_fragment = false; // no transport header in it
    bool fragment = false;       // the first one or a later one
    // Set where the whole transport header is there.
    bool has_ports = false;
    uint16_t source_port = 0, destination_port = 0; // ICMP echo: both the identifier
    uint8_t tcp_flags = 0;
    uint8_t icmp_type = 0;       // 0 too where it is no ICMP
    std::optional<Ip> nd_target; // of a neighbour solicitation or advertisement
    // IPv4, and whole: between the ports of a DHCP client and a server.
    std::optional<DhcpMessage> dhcp;
};

struct Parsed {
    Mac destination, source;
    uint16_t type = 0;
    std::optional<ArpPacket> arp;
    std::optional<IpPacket> ip;
};

// nullopt for a frame without an Ethernet header. Neither arp nor ip: something else, or broken.
// VLAN tags are not looked behind.
std::optional<Parsed> parse_frame(Bytes frame);

} // namespace drover::tunnel
