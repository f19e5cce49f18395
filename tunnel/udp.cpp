// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/udp.h"

#include "common/error.h"

#include <algorithm>
#include <cstring>

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/udp.h>

namespace drover::tunnel {
namespace {

constexpr int socket_buffer = 4 << 20;
constexpr size_t most_together = 64, most_bytes_together = 65000; // with room for headers

// DF is set and the kernel's own idea of the path's MTU is not asked: PathMtu finds it.
void set_options(int fd, int family) {
    const auto set = [&](int level, int name, int value) {
        ::setsockopt(fd, level, name, &value, sizeof value);
    };
    set(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
    if (family == AF_INET6) {
        set(IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
    }
    set(SOL_UDP, UDP_GRO, 1);
    set(SOL_SOCKET, SO_RCVBUF, socket_buffer);
    set(SOL_SOCKET, SO_SNDBUF, socket_buffer);
}

UniqueFd new_socket(int family) {
    UniqueFd fd(::socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) {
        throw_errno("a UDP socket");
    }
    set_options(fd.get(), family);
    return fd;
}

void send_one(int fd, const SocketAddress& peer, Bytes datagram) {
    ::sendto(fd,
             datagram.data(),
             datagram.size(),
             MSG_DONTWAIT | MSG_NOSIGNAL,
             peer.size != 0 ? peer.get() : nullptr,
             peer.size);
}

// False where the kernel or the interface can't do that.
bool send_together(int fd, const SocketAddress& peer, Bytes bytes, size_t size) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))]{};
    iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    msghdr message{};
    if (peer.size != 0) {
        message.msg_name = const_cast<sockaddr*>(peer.get());
        message.msg_namelen = peer.size;
    }
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    const auto segment = static_cast<uint16_t>(size);
    std::memcpy(CMSG_DATA(header), &segment, sizeof segment);
    return ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
           (errno != EIO && errno != EINVAL);
}

} // namespace

bool SocketAddress::operator==(const SocketAddress& other) const {
    return size == other.size && std::memcmp(&storage, &other.storage, size) == 0;
}

SocketAddress parse_socket_address(const std::string& text) {
    const size_t colon = text.rfind(':');
    std::string host = text.substr(0, colon);
    if (colon != std::string::npos) {
        if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
            host = host.substr(1, host.size() - 2);
        } else if (host.find(':') != std::string::npos) {
            host.clear(); // IPv6 without its brackets
        }
    }
    addrinfo hints{};
    hints.ai_socktype = SOCK_DGRAM;
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    const bool any = host == "*";
    if (colon == std::string::npos || host.empty() ||
        ::getaddrinfo(any ? "::" : host.c_str(), text.c_str() + colon + 1, &hints, &found) != 0) {
        throw Error(ErrorKind::usage,
                    fmt::format("'{}' is not ADDRESS:PORT, with an address in numbers, one of IPv6 "
                                "in brackets",
                                text));
    }
    SocketAddress address;
    std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
    address.size = found->ai_addrlen;
    ::freeaddrinfo(found);
    return address;
}

std::string to_text(const SocketAddress& address) {
    char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
    ::getnameinfo(address.get(),
                  address.size,
                  host,
                  sizeof host,
                  port,
                  sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV);
    return std::strchr(host, ':') != nullptr ? fmt::format("[{}]:{}", host, port)
                                             : fmt::format("{}:{}", host, port);
}

bool same_host(const SocketAddress& a, const SocketAddress& b) {
    SocketAddress without_port = a;
    // At the same place in both families.
    reinterpret_cast<sockaddr_in*>(&without_port.storage)->sin_port =
        reinterpret_cast<const sockaddr_in*>(&b.storage)->sin_port;
    return without_port == b;
}

UniqueFd connected_socket(const SocketAddress& to) {
    UniqueFd fd = new_socket(to.storage.ss_family);
    if (::connect(fd.get(), to.get(), to.size) != 0) {
        throw_errno(to_text(to));
    }
    return fd;
}

UniqueFd bound_socket(const SocketAddress& at) {
    UniqueFd fd = new_socket(at.storage.ss_family);
    if (at.storage.ss_family == AF_INET6) {
        const int both = 0;
        ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &both, sizeof both);
    }
    if (::bind(fd.get(), at.get(), at.size) != 0) {
        throw_errno("--listen");
    }
    return fd;
}

UniqueFd copy_of_socket(int socket) {
    UniqueFd fd(::fcntl(socket, F_DUPFD_CLOEXEC, 3));
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (!fd || ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
        throw_errno("--listen-fd");
    }
    set_options(fd.get(), address.ss_family);
    return fd;
}

void Outbox::add(int fd, const SocketAddress& peer, Bytes datagram) {
    const bool joins = !full_ && fd == fd_ && peer == peer_ && datagram.size() <= size_ &&
                       bytes_.size() + datagram.size() <= most_bytes_together;
    if (!joins) {
        flush();
        fd_ = fd;
        peer_ = peer;
        size_ = datagram.size();
    }
    bytes_.insert(bytes_.end(), datagram.begin(), datagram.end());
    full_ = datagram.size() < size_ || bytes_.size() == size_ * most_together;
}

void Outbox::flush() {
    const Bytes all(bytes_);
    if (all.size() <= size_ || !send_together(fd_, peer_, all, size_)) {
        for (size_t at = 0; at < all.size(); at += size_) {
            send_one(fd_, peer_, all.subspan(at, std::min(size_, all.size() - at)));
        }
    }
    bytes_.clear();
    full_ = true;
}

std::optional<Received> receive_from(int fd, std::span<uint8_t> buffer) {
    Received received;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
    iovec part{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_name = &received.peer.storage;
    message.msg_namelen = sizeof received.peer.storage;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t size = ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (size < 0) {
        return std::nullopt;
    }
    received.peer.size = message.msg_namelen;
    received.bytes = buffer.first(static_cast<size_t>(size));
    received.size = received.bytes.size();
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == SOL_UDP && header->cmsg_type == UDP_GRO) {
            int segment = 0;
            std::memcpy(&segment, CMSG_DATA(header), sizeof segment);
            received.size = static_cast<size_t>(std::max(segment, 1));
        }
    }
    return received;
}

} // namespace drover::tunnel
