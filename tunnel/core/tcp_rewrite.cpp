// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/tcp_rewrite.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr size_t tcp_header = 20;
constexpr uint8_t option_end = 0, option_nop = 1, option_mss = 2;

// The offset of the MSS within the frame, 0 if there is none.
size_t find_mss(Bytes frame, size_t tcp, size_t end) {
    const size_t header_end = tcp + size_t{4} * (frame[tcp + 12] >> 4);
    if (header_end > end) {
        return 0;
    }
    size_t at = tcp + tcp_header;
    while (at < header_end && frame[at] != option_end) {
        if (frame[at] == option_nop) {
            ++at;
            continue;
        }
        if (at + 1 >= header_end || frame[at + 1] < 2 || at + frame[at + 1] > header_end) {
            return 0;
        }
        if (frame[at] == option_mss) {
            return frame[at + 1] == 4 ? at + 2 : 0;
        }
        at += frame[at + 1];
    }
    return 0;
}

// RFC 1624: what `from` added to the sum is replaced by what `to` adds. A value at an odd offset of
// the header would add its bytes the other way round.
void replace_word(uint8_t* checksum, uint16_t from, uint16_t to, bool odd) {
    const auto swapped = [&](uint16_t word) {
        return odd ? static_cast<uint16_t>(word << 8 | word >> 8) : word;
    };
    const uint32_t sum = static_cast<uint16_t>(~get16(checksum)) +
                         static_cast<uint32_t>(static_cast<uint16_t>(~swapped(from))) + swapped(to);
    put16(checksum, folded_checksum(sum));
}

} // namespace

bool clamp_mss(std::span<uint8_t> frame, const Parsed& parsed, size_t largest_packet) {
    if (!parsed.ip || parsed.ip->protocol != ip_tcp || !parsed.ip->has_ports ||
        (parsed.ip->tcp_flags & tcp_flag::syn) == 0) {
        return false;
    }
    const size_t headers = (parsed.ip->source.version == 4 ? 20 : 40) + tcp_header;
    const size_t tcp = parsed.ip->payload;
    const size_t at = find_mss(frame, tcp, parsed.ip->end);
    if (at == 0 || largest_packet <= headers) {
        return false;
    }
    const uint16_t mss = get16(frame.data() + at);
    const auto most = static_cast<uint16_t>(std::min<size_t>(largest_packet - headers, 0xffff));
    if (mss <= most) {
        return false;
    }
    put16(frame.data() + at, most);
    replace_word(frame.data() + tcp + 16, mss, most, (at - tcp) % 2 != 0);
    return true;
}

} // namespace drover::tunnel
