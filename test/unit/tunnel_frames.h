// SPDX-License-Identifier: GPL-2.0-or-later
// Frames for the tests of the tunnel, and what they are about: a VM 10.1.0.10, 2001:db8:1::10.
#pragma once

#include "tunnel/core/address_filter.h"

namespace drover::tunnel::test {

inline const Mac vm_mac = *parse_mac("02:00:00:00:00:10");
inline const Mac gateway_mac = *parse_mac("02:00:00:00:00:01");

inline Nic vm_nic() {
    return {vm_mac,
            {*parse_prefix("10.1.0.10/24"), *parse_prefix("2001:db8:1::10/64")},
            {*parse_ip("fe80::1")}};
}

inline void append(Frame& frame, Bytes bytes) {
    frame.insert(frame.end(), bytes.begin(), bytes.end());
}

inline Frame ethernet(const Mac& to, const Mac& from, uint16_t type) {
    Frame frame;
    append(frame, to.bytes);
    append(frame, from.bytes);
    frame.push_back(static_cast<uint8_t>(type >> 8));
    frame.push_back(static_cast<uint8_t>(type));
    return frame;
}

inline Frame arp_frame(const Mac& to,
                       uint8_t operation,
                       const Mac& from,
                       const char* sender,
                       const Mac& target_mac,
                       const char* target) {
    Frame frame = ethernet(to, from, type_arp);
    append(frame, std::array<uint8_t, 8>{0, 1, 8, 0, 6, 4, 0, operation});
    append(frame, from.bytes);
    append(frame, parse_ip(sender)->span());
    append(frame, target_mac.bytes);
    append(frame, parse_ip(target)->span());
    return frame;
}

// An IP packet with right checksums of its header (IPv4) and none of its payload's.
inline Frame ip_frame(const Mac& to,
                      const Mac& from,
                      const char* source,
                      const char* destination,
                      uint8_t protocol,
                      const Frame& payload) {
    const Ip src = *parse_ip(source), dst = *parse_ip(destination);
    Frame frame = ethernet(to, from, src.version == 4 ? type_ipv4 : type_ipv6);
    if (src.version == 4) {
        Frame header{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0};
        append(header, src.span());
        append(header, dst.span());
        put16(header.data() + 2, static_cast<uint16_t>(20 + payload.size()));
        put16(header.data() + 10, folded_checksum(sum_words(header)));
        append(frame, header);
    } else {
        Frame header{0x60, 0, 0, 0, 0, 0, protocol, 255};
        put16(header.data() + 4, static_cast<uint16_t>(payload.size()));
        append(header, src.span());
        append(header, dst.span());
        append(frame, header);
    }
    append(frame, payload);
    return frame;
}

// What a receiver adds up: 0 if the checksum of TCP, UDP or ICMPv6 is right.
inline uint16_t transport_sum(const Frame& frame) {
    const IpPacket ip = parse_frame(frame)->ip.value();
    const Bytes payload = Bytes(frame).subspan(ip.payload, ip.end - ip.payload);
    const uint32_t pseudo = sum_words(ip.destination.span(), sum_words(ip.source.span())) +
                            static_cast<uint32_t>(payload.size()) + ip.protocol;
    return folded_checksum(sum_words(payload, pseudo));
}

// With these options (a multiple of 4 bytes), some data, and a right checksum.
inline Frame tcp_frame(const Mac& to,
                       const Mac& from,
                       const char* source,
                       uint16_t source_port,
                       const char* destination,
                       uint16_t destination_port,
                       uint8_t flags,
                       const Frame& options = {},
                       size_t data = 0) {
    Frame tcp(20);
    put16(tcp.data(), source_port);
    put16(tcp.data() + 2, destination_port);
    tcp[12] = static_cast<uint8_t>((20 + options.size()) / 4 << 4);
    tcp[13] = flags;
    append(tcp, options);
    tcp.resize(tcp.size() + data, 0x5a);
    Frame frame = ip_frame(to, from, source, destination, ip_tcp, tcp);
    put16(frame.data() + parse_frame(frame)->ip->payload + 16, transport_sum(frame));
    return frame;
}

inline Frame udp_frame(const Mac& to,
                       const Mac& from,
                       const char* source,
                       uint16_t source_port,
                       const char* destination,
                       uint16_t destination_port,
                       size_t data = 0) {
    Frame udp(8 + data);
    put16(udp.data(), source_port);
    put16(udp.data() + 2, destination_port);
    put16(udp.data() + 4, static_cast<uint16_t>(udp.size()));
    return ip_frame(to, from, source, destination, ip_udp, udp);
}

// A neighbour solicitation or advertisement without options.
inline Frame nd_frame(const Mac& to,
                      const Mac& from,
                      uint8_t type,
                      const char* source,
                      const char* destination,
                      const char* target) {
    Frame icmp{type, 0, 0, 0, 0, 0, 0, 0};
    append(icmp, parse_ip(target)->span());
    return ip_frame(to, from, source, destination, ip_icmpv6, icmp);
}

} // namespace drover::tunnel::test
