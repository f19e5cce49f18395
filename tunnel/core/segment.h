// SPDX-License-Identifier: GPL-2.0-or-later
// Whether two bridges at two sites are one segment, and how a VM that has moved within it is
// announced. Pure; any thread.
#pragma once

#include "tunnel/core/address_filter.h"

namespace drover::tunnel {

// Only the two sites know it: who sees it has got the other one's frame.
using Nonce = std::array<uint8_t, 14>;
std::optional<Nonce> parse_nonce(std::string_view hexadecimal);
std::string to_text(const Nonce& nonce);

// Asks for each address of the VM, by ARP and neighbour discovery, with the nonce in it. From no
// address, so that nobody's cache changes, and a MAC made of the nonce: the bridges of two sites
// may have the same one, as gateways do that are everywhere.
std::vector<Frame> probes(const Nic& nic, const Nonce& nonce);
bool carries(Bytes frame, const Nonce& nonce);
// An answer of the VM: from its MAC, for one of its addresses.
bool is_answer(const Nic& nic, const Parsed& frame);

enum class Segment { same, other, unclear };
// heard: the source got the destination's question at the bridge that the VM is attached to;
// answered: the destination got the VM's answer at the bridge where it goes. Only both together
// show that it is one segment: another VM there may have the same address, with the same MAC even.
Segment judge_segment(bool heard, bool answered);

// Gratuitous ARP, unsolicited neighbour advertisements, and RARP: what tells neighbours and
// switches where the VM is.
std::vector<Frame> moved_announcements(const Nic& nic);
// How long to wait after the announcement number `sent`, from 1; nullopt: it was the last one.
std::optional<uint64_t> announce_again_ms(unsigned sent);

} // namespace drover::tunnel
