// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/compose.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr uint8_t hop_limit = 255; // of all neighbour discovery

void append(Frame& frame, Bytes bytes) {
    frame.insert(frame.end(), bytes.begin(), bytes.end());
}

void append16(Frame& frame, uint16_t value) {
    frame.push_back(static_cast<uint8_t>(value >> 8));
    frame.push_back(static_cast<uint8_t>(value));
}

Frame ethernet(const Mac& destination, const Mac& source, uint16_t type) {
    Frame frame;
    frame.reserve(86);
    append(frame, destination.bytes);
    append(frame, source.bytes);
    append16(frame, type);
    return frame;
}

Frame address_resolution(const Mac& to,
                         uint16_t type,
                         uint16_t operation,
                         const Mac& mac,
                         const Ip& ip,
                         const Mac& target_mac,
                         const Ip& target) {
    Frame frame = ethernet(to, mac, type);
    append16(frame, 1);
    append16(frame, type_ipv4);
    frame.push_back(6);
    frame.push_back(4);
    append16(frame, operation);
    append(frame, mac.bytes);
    append(frame, ip.span());
    append(frame, target_mac.bytes);
    append(frame, target.span());
    return frame;
}

// Its checksum is filled in.
Frame icmpv6(const Mac& to, const Mac& mac, const Ip& source, const Ip& destination, Frame icmp) {
    const auto length = static_cast<uint8_t>(icmp.size());
    const uint32_t pseudo =
        sum_words(destination.span(), sum_words(source.span())) + length + ip_icmpv6;
    put16(icmp.data() + 2, folded_checksum(sum_words(icmp, pseudo)));

    Frame frame = ethernet(to, mac, type_ipv6);
    frame.insert(frame.end(), {0x60, 0, 0, 0, 0, length, ip_icmpv6, hop_limit});
    append(frame, source.span());
    append(frame, destination.span());
    append(frame, icmp);
    return frame;
}

} // namespace

Frame arp_frame(const Mac& to,
                uint16_t operation,
                const Mac& mac,
                const Ip& ip,
                const Mac& target_mac,
                const Ip& target) {
    return address_resolution(to, type_arp, operation, mac, ip, target_mac, target);
}

Frame reverse_arp_frame(const Mac& mac) {
    constexpr uint16_t type_rarp = 0x8035, request_reverse = 3;
    return address_resolution(Mac::broadcast(), type_rarp, request_reverse, mac, Ip{}, mac, Ip{});
}

Frame neighbour_advert(
    const Mac& to, const Mac& mac, const Ip& ip, const Ip& destination, uint8_t flags) {
    Frame icmp{nd_advert, 0, 0, 0, flags, 0, 0, 0};
    append(icmp, ip.span());
    icmp.insert(icmp.end(), {2, 1});
    append(icmp, mac.bytes);
    return icmpv6(to, mac, ip, destination, std::move(icmp));
}

Frame duplicate_solicit(const Mac& mac, const Ip& target, const std::array<uint8_t, 14>& nonce) {
    constexpr uint8_t nonce_option = 14, units = 2; // of 8 bytes
    Frame icmp{nd_solicit, 0, 0, 0, 0, 0, 0, 0};
    append(icmp, target.span());
    icmp.insert(icmp.end(), {nonce_option, units});
    append(icmp, nonce);
    Ip group{6, {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}};
    std::copy_n(target.bytes.begin() + 13, 3, group.bytes.begin() + 13);
    Mac group_mac{{0x33, 0x33}};
    std::copy_n(group.bytes.begin() + 12, 4, group_mac.bytes.begin() + 2);
    return icmpv6(group_mac, mac, Ip{6, {}}, group, std::move(icmp));
}

} // namespace drover::tunnel
