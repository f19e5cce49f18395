// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/packet.h"

#include <algorithm>
#include <cstring>

namespace drover::tunnel {
namespace {

constexpr size_t arp_size = 28, ipv4_header = 20, ipv6_header = 40, tcp_header = 20, udp_header = 8;
constexpr int most_extension_headers = 8;

Mac mac_at(const uint8_t* at) {
    Mac mac;
    std::copy_n(at, mac.bytes.size(), mac.bytes.begin());
    return mac;
}

Ip ip_at(const uint8_t* at, uint8_t version) {
    Ip ip;
    ip.version = version;
    std::copy_n(at, ip.size(), ip.bytes.begin());
    return ip;
}

std::optional<ArpPacket> parse_arp(Bytes bytes) {
    const uint8_t* const at = bytes.data();
    if (bytes.size() < arp_size || get16(at) != 1 || get16(at + 2) != type_ipv4 || at[4] != 6 ||
        at[5] != 4) {
        return std::nullopt;
    }
    ArpPacket arp;
    arp.operation = get16(at + 6);
    if (arp.operation != 1 && arp.operation != 2) {
        return std::nullopt;
    }
    arp.sender_mac = mac_at(at + 8);
    arp.sender = ip_at(at + 14, 4);
    arp.target_mac = mac_at(at + 18);
    arp.target = ip_at(at + 24, 4);
    return arp;
}

bool is_dhcp(const IpPacket& ip) {
    const bool from_client =
        ip.source_port == dhcp_client_port && ip.destination_port == dhcp_server_port;
    const bool from_server =
        ip.source_port == dhcp_server_port && ip.destination_port == dhcp_client_port;
    return ip.source.version == 4 && !ip.fragment && (from_client || from_server);
}

void parse_transport(Bytes frame, IpPacket& ip) {
    const uint8_t* const at = frame.data() + ip.payload;
    const size_t size = ip.end - ip.payload;
    const bool icmp = ip.protocol == (ip.source.version == 4 ? ip_icmp : ip_icmpv6);
    if (ip.protocol == ip_tcp && size >= tcp_header) {
        ip.has_ports = true;
        ip.tcp_flags = at[13];
    } else if (ip.protocol == ip_udp && size >= udp_header) {
        ip.has_ports = true;
    } else if (icmp && size >= 8) {
        ip.icmp_type = at[0];
        const bool echo =
            ip.source.version == 4 ? at[0] == 0 || at[0] == 8 : at[0] == 128 || at[0] == 129;
        if (echo) {
            ip.has_ports = true;
            ip.source_port = ip.destination_port = get16(at + 4);
        }
        if (ip.source.version == 6 && (at[0] == nd_solicit || at[0] == nd_advert) && size >= 24) {
            ip.nd_target = ip_at(at + 8, 6);
        }
        return;
    }
    if (ip.has_ports) {
        ip.source_port = get16(at);
        ip.destination_port = get16(at + 2);
    }
    if (ip.protocol == ip_udp && is_dhcp(ip)) {
        const size_t length = get16(at + 4);
        if (length >= udp_header && length <= size) {
            ip.dhcp = parse_dhcp({at + udp_header, length - udp_header});
        }
    }
}

std::optional<IpPacket> parse_ipv4(Bytes frame) {
    const uint8_t* const at = frame.data() + ethernet_header;
    const size_t size = frame.size() - ethernet_header;
    if (size < ipv4_header || at[0] >> 4 != 4) {
        return std::nullopt;
    }
    const size_t header = size_t{4} * (at[0] & 15);
    const size_t total = get16(at + 2);
    if (header < ipv4_header || total < header || total > size) {
        return std::nullopt;
    }
    IpPacket ip;
    ip.header = ethernet_header;
    ip.payload = ethernet_header + header;
    ip.end = ethernet_header + total;
    ip.protocol = at[9];
    ip.source = ip_at(at + 12, 4);
    ip.destination = ip_at(at + 16, 4);
    ip.later_fragment = (get16(at + 6) & 0x1fff) != 0;
    ip.fragment = (get16(at + 6) & 0x3fff) != 0;
    return ip;
}

std::optional<IpPacket> parse_ipv6(Bytes frame) {
    const uint8_t* const at = frame.data() + ethernet_header;
    const size_t size = frame.size() - ethernet_header;
    if (size < ipv6_header || at[0] >> 4 != 6 || size_t{get16(at + 4)} + ipv6_header > size) {
        return std::nullopt;
    }
    IpPacket ip;
    ip.header = ethernet_header;
    ip.end = ethernet_header + ipv6_header + get16(at + 4);
    ip.payload = ethernet_header + ipv6_header;
    ip.protocol = at[6];
    ip.source = ip_at(at + 8, 6);
    ip.destination = ip_at(at + 24, 6);
    for (int i = 0; i < most_extension_headers && !ip.later_fragment; ++i) {
        const uint8_t* const next = frame.data() + ip.payload;
        const size_t left = ip.end - ip.payload;
        size_t length = 0;
        if (ip.protocol == 44 && left >= 8) { // fragment
            length = 8;
            ip.fragment = true;
            ip.later_fragment = (get16(next + 2) & 0xfff8) != 0;
        } else if ((ip.protocol == 0 || ip.protocol == 43 || ip.protocol == 60) && left >= 8) {
            length = size_t{8} * (next[1] + size_t{1}); // hop by hop, routing, destination
        } else {
            break;
        }
        if (length > left) {
            return std::nullopt;
        }
        ip.protocol = next[0];
        ip.payload += length;
    }
    // More of them than are looked through, or cut off: what it carries is not known.
    const bool unknown =
        ip.protocol == 0 || ip.protocol == 43 || ip.protocol == 44 || ip.protocol == 60;
    if (unknown && !ip.later_fragment) {
        return std::nullopt;
    }
    return ip;
}

} // namespace

uint16_t get16(const uint8_t* at) {
    return static_cast<uint16_t>(at[0] << 8 | at[1]);
}

uint32_t get32(const uint8_t* at) {
    return static_cast<uint32_t>(get16(at)) << 16 | get16(at + 2);
}

void put16(uint8_t* at, uint16_t value) {
    at[0] = static_cast<uint8_t>(value >> 8);
    at[1] = static_cast<uint8_t>(value);
}

void put32(uint8_t* at, uint32_t value) {
    put16(at, static_cast<uint16_t>(value >> 16));
    put16(at + 2, static_cast<uint16_t>(value));
}

uint32_t sum_words(Bytes bytes, uint32_t sum) {
    // The order of the bytes in a word may be any, if the sum is read in the same one.
    uint64_t wide = 0, words = 0;
    for (; bytes.size() >= sizeof words; bytes = bytes.subspan(sizeof words)) {
        std::memcpy(&words, bytes.data(), sizeof words);
        wide += (words & 0xffffffff) + (words >> 32);
    }
    words = 0;
    if (!bytes.empty()) {
        std::memcpy(&words, bytes.data(), bytes.size());
    }
    wide += (words & 0xffffffff) + (words >> 32);
    while (wide >> 16 != 0) {
        wide = (wide & 0xffff) + (wide >> 16);
    }
    const auto folded = static_cast<uint16_t>(wide);
    uint8_t in_order[2];
    std::memcpy(in_order, &folded, sizeof folded);
    return sum + get16(in_order);
}

uint16_t folded_checksum(uint32_t sum) {
    while (sum >> 16 != 0) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return static_cast<uint16_t>(~sum);
}

std::optional<Parsed> parse_frame(Bytes frame) {
    if (frame.size() < ethernet_header) {
        return std::nullopt;
    }
    Parsed parsed;
    parsed.destination = mac_at(frame.data());
    parsed.source = mac_at(frame.data() + 6);
    parsed.type = get16(frame.data() + 12);
    switch (parsed.type) {
    case type_arp:
        parsed.arp = parse_arp(frame.subspan(ethernet_header));
        break;
    case type_ipv4:
        parsed.ip = parse_ipv4(frame);
        break;
    case type_ipv6:
        parsed.ip = parse_ipv6(frame);
        break;
    default:
        break;
    }
    if (parsed.ip && !parsed.ip->later_fragment) {
        parse_transport(frame, *parsed.ip);
    }
    return parsed;
}

} // namespace drover::tunnel
