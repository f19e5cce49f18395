// SPDX-License-Identifier: GPL-2.0-or-later
// What is changed in packets on their way: the MSS of new connections. Pure; any thread.
#pragma once

#include "tunnel/core/packet.h"

namespace drover::tunnel {

// In a TCP packet with SYN: lowers its MSS option, if it has one, so that its connection's packets
// have at most `largest_packet` bytes (IP header included), and mends the checksum. `parsed` is of
// `frame`. True if it changed something.
bool clamp_mss(std::span<uint8_t> frame, const Parsed& parsed, size_t largest_packet);

} // namespace drover::tunnel
