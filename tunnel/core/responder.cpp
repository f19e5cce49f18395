// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/responder.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr uint8_t advert_solicited = 0x40, advert_override = 0x20;

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

Frame arp(const Mac& to,
          uint16_t operation,
          const Mac& mac,
          const Ip& ip,
          const Mac& target_mac,
          const Ip& target) {
    Frame frame = ethernet(to, mac, type_arp);
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

// RFC 4861, 4.4, with the option of the target's link-layer address.
Frame neighbour_advert(
    const Mac& to, const Mac& mac, const Ip& ip, const Ip& destination, uint8_t flags) {
    constexpr uint16_t length = 32;
    Frame icmp{nd_advert, 0, 0, 0, flags, 0, 0, 0};
    append(icmp, ip.span());
    icmp.insert(icmp.end(), {2, 1});
    append(icmp, mac.bytes);
    const uint32_t pseudo =
        sum_words(destination.span(), sum_words(ip.span())) + length + ip_icmpv6;
    put16(icmp.data() + 2, folded_checksum(sum_words(icmp, pseudo)));

    Frame frame = ethernet(to, mac, type_ipv6);
    frame.insert(frame.end(), {0x60, 0, 0, 0, 0, length, ip_icmpv6, 255});
    append(frame, ip.span());
    append(frame, destination.span());
    append(frame, icmp);
    return frame;
}

struct AllNodes {
    Ip ip{6, {0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
    Mac mac{{0x33, 0x33, 0, 0, 0, 1}};
};

} // namespace

std::optional<Frame> answer_for(const Nic& nic, const Parsed& parsed) {
    if (parsed.source == nic.mac) {
        return std::nullopt;
    }
    if (parsed.arp && parsed.arp->operation == 1 && nic.has_address(parsed.arp->target) &&
        parsed.arp->sender != parsed.arp->target) {
        return arp(parsed.source,
                   2,
                   nic.mac,
                   parsed.arp->target,
                   parsed.arp->sender_mac,
                   parsed.arp->sender);
    }
    if (parsed.ip && parsed.ip->icmp_type == nd_solicit && parsed.ip->nd_target &&
        nic.has_address(*parsed.ip->nd_target)) {
        const Ip& asker = parsed.ip->source;
        const AllNodes all;
        return asker.is_unspecified()
                   ? neighbour_advert(
                         all.mac, nic.mac, *parsed.ip->nd_target, all.ip, advert_override)
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
    const AllNodes all;
    for (const Prefix& prefix : nic.addresses) {
        const Ip& ip = prefix.address;
        frames.push_back(ip.version == 4
                             ? arp(Mac::broadcast(), 1, nic.mac, ip, Mac{}, ip)
                             : neighbour_advert(all.mac, nic.mac, ip, all.ip, advert_override));
    }
    return frames;
}

} // namespace drover::tunnel
