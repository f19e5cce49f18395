// SPDX-License-Identifier: GPL-2.0-or-later
// Answers for the VM on its old segment while it is elsewhere: at once, also while it is paused or
// the link is down. What it says is true there, as the frames to the VM's own MAC come to the home
// end: no cache ever holds a MAC that is not the VM's. Pure; const, so any thread.
#pragma once

#include "tunnel/core/address_filter.h"

namespace drover::tunnel {

// The answer to an ARP request or neighbour solicitation for an old address; nullopt if the frame
// is none. `parsed` is of `frame`.
std::optional<Frame> answer_for(const Nic& nic, const Parsed& parsed);

// Gratuitous ARP and unsolicited neighbour advertisements of all old addresses: for switches, where
// the home end is on another host than the VM was.
std::vector<Frame> announcements(const Nic& nic);

} // namespace drover::tunnel
