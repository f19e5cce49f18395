// SPDX-License-Identifier: GPL-2.0-or-later
// Frames at an interface, past the host's IP stack. Needs CAP_NET_RAW to be opened, in the network
// namespace of the caller. One thread.
#pragma once

#include "common/unique_fd.h"
#include "tunnel/core/address.h"

#include <chrono>

namespace drover::tunnel {

class PacketSocket {
public:
    enum class Hears {
        nothing,
        address_resolution
    }; // ARP and ICMPv6 of up to 128 bytes, whomever for

    // Throws Error(usage) if there is no such interface, or it is none of Ethernet; Error(io).
    PacketSocket(const std::string& interface, Hears hears);

    // A full queue drops it, as a network may. Throws Error(io).
    void send(Bytes frame);
    // nullopt: none has come by then.
    std::optional<Frame> receive(std::chrono::steady_clock::time_point deadline);

private:
    const std::string interface_;
    UniqueFd fd_;
};

} // namespace drover::tunnel
