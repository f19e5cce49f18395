// SPDX-License-Identifier: GPL-2.0-or-later
// UDP sockets of the link, and many datagrams by one call of the kernel. One thread.
#pragma once

#include "common/unique_fd.h"
#include "tunnel/core/address.h"

#include <sys/socket.h>

namespace drover::tunnel {

struct SocketAddress {
    sockaddr_storage storage{};
    socklen_t size = 0;

    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
    Bytes bytes() const { return {reinterpret_cast<const uint8_t*>(&storage), size}; }
    bool operator==(const SocketAddress& other) const;
};

// "10.0.0.1:4789", "[2001:db8::1]:4789"; "*:4789" is any address of IPv6 and IPv4. Numeric only.
// Throws Error(usage).
SocketAddress parse_socket_address(const std::string& text);
std::string to_text(const SocketAddress& address);
bool same_host(const SocketAddress& a, const SocketAddress& b);

// Non-blocking, and with the don't-fragment bit, whatever the kernel thinks of a path's MTU. They
// throw Error(io).
UniqueFd connected_socket(const SocketAddress& to);
UniqueFd bound_socket(const SocketAddress& at);
UniqueFd copy_of_socket(int socket);

// Datagrams on their way out. Those of one size that follow each other to one peer are sent
// together, with a smaller one behind them.
class Outbox {
public:
    // peer: of size 0 where the socket is connected. It may wait for others until the next flush().
    void add(int fd, const SocketAddress& peer, Bytes datagram);
    // What can't be sent is lost, as it may be on its way. To be called before a socket is closed.
    void flush();

private:
    int fd_ = -1;
    SocketAddress peer_;
    std::vector<uint8_t> bytes_; // of all of them
    size_t size_ = 0;            // of each but the last
    bool full_ = false;
};

// Datagrams that came from one peer.
struct Received {
    SocketAddress peer;
    Bytes bytes;     // of all of them, in the buffer
    size_t size = 0; // of each but the last
};
// nullopt: none has come, or an ICMP error, of which no account is taken.
std::optional<Received> receive_from(int fd, std::span<uint8_t> buffer);

} // namespace drover::tunnel
