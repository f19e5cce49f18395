// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/segment.h"

#include "common/secrets.h"
#include "tunnel/core/compose.h"
#include "tunnel/core/responder.h"

#include <algorithm>

namespace drover::tunnel {

std::optional<Nonce> parse_nonce(std::string_view hexadecimal) {
    const auto bytes = from_hex(hexadecimal);
    Nonce nonce{};
    if (!bytes || bytes->size() != nonce.size()) {
        return std::nullopt;
    }
    std::copy(bytes->begin(), bytes->end(), nonce.begin());
    return nonce;
}

std::string to_text(const Nonce& nonce) {
    return to_hex({reinterpret_cast<const char*>(nonce.data()), nonce.size()});
}

std::vector<Frame> probes(const Nic& nic, const Nonce& nonce) {
    constexpr size_t smallest_frame = 60;
    Mac asker{{2}}; // locally administered
    std::copy_n(nonce.begin(), 5, asker.bytes.begin() + 1);
    std::vector<Frame> frames;
    for (const Prefix& prefix : nic.addresses) {
        const Ip& ip = prefix.address;
        if (ip.version == 6) {
            frames.push_back(duplicate_solicit(asker, ip, nonce));
            continue;
        }
        Frame frame = arp_frame(Mac::broadcast(), 1, asker, Ip{}, Mac{}, ip);
        frame.insert(frame.end(), nonce.begin(), nonce.end()); // in what is padding otherwise
        frame.resize(smallest_frame);
        frames.push_back(std::move(frame));
    }
    return frames;
}

bool carries(Bytes frame, const Nonce& nonce) {
    return std::search(frame.begin(), frame.end(), nonce.begin(), nonce.end()) != frame.end();
}

bool is_answer(const Nic& nic, const Parsed& frame) {
    if (frame.source != nic.mac) {
        return false;
    }
    if (frame.arp) {
        return frame.arp->operation == 2 && frame.arp->sender_mac == nic.mac &&
               nic.has_address(frame.arp->sender);
    }
    return frame.ip && frame.ip->icmp_type == nd_advert && frame.ip->nd_target &&
           nic.has_address(*frame.ip->nd_target);
}

Segment judge_segment(bool heard, bool answered) {
    if (heard != answered) {
        return Segment::unclear;
    }
    return heard ? Segment::same : Segment::other;
}

std::vector<Frame> moved_announcements(const Nic& nic) {
    std::vector<Frame> frames = announcements(nic);
    frames.push_back(reverse_arp_frame(nic.mac));
    return frames;
}

std::optional<uint64_t> announce_again_ms(unsigned sent) {
    constexpr uint64_t first_ms = 100;
    constexpr unsigned rounds = 10; // the last one 51 s after the first
    if (sent >= rounds) {
        return std::nullopt;
    }
    return first_ms << (sent == 0 ? 0 : sent - 1);
}

} // namespace drover::tunnel
