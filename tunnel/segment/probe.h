// SPDX-License-Identifier: GPL-2.0-or-later
// The two sides of the question whether a VM's bridges at two sites are one segment
// (core/segment.h). Blocking; each throws as PacketSocket.
#pragma once

#include "tunnel/core/segment.h"
#include "tunnel/segment/packet_socket.h"

namespace drover::tunnel {

// At the destination: asks for the VM, whose addresses are not none, until it has answered.
// False: not within `patience`.
bool vm_answers(const std::string& interface,
                const Nic& nic,
                const Nonce& nonce,
                std::chrono::milliseconds patience);

// At the source, from before the destination asks.
class NonceWatch {
public:
    explicit NonceWatch(const std::string& interface)
        : socket_(interface, PacketSocket::Hears::address_resolution) {}
    // False: it has not come since, and does not within `patience`.
    bool heard(const Nonce& nonce, std::chrono::milliseconds patience);

private:
    PacketSocket socket_;
};

} // namespace drover::tunnel
