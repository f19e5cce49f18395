// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/segment/packet_socket.h"

#include "common/error.h"

#include <algorithm>

#include <fmt/format.h>

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace drover::tunnel {
namespace {

constexpr uint32_t longest_heard = 128;

// What is not asked for is left in the kernel: a bridge may carry a lot.
void hear_address_resolution(int fd) {
    constexpr uint16_t type_at = 12, next_header_at = 20;
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, longest_heard, 6, 0),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, type_at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 0, 3),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, next_header_at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_ICMPV6, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, longest_heard),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    const sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
    const int buffer = 1 << 20;
    if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0 ||
        ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer) != 0) {
        throw_errno("a packet socket's filter");
    }
}

} // namespace

PacketSocket::PacketSocket(const std::string& interface, Hears hears) : interface_(interface) {
    const unsigned index = ::if_nametoindex(interface.c_str());
    if (index == 0) {
        throw Error(ErrorKind::usage, fmt::format("there is no network interface '{}'", interface));
    }
    // Of no protocol, it hears nothing before it is bound.
    fd_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd_) {
        throw_errno("a packet socket");
    }
    ifreq request{};
    interface.copy(request.ifr_name, IFNAMSIZ - 1);
    if (::ioctl(fd_.get(), SIOCGIFHWADDR, &request) != 0) {
        throw_errno(interface);
    }
    if (request.ifr_hwaddr.sa_family != ARPHRD_ETHER) {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no interface of Ethernet", interface));
    }
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_ifindex = static_cast<int>(index);
    if (hears == Hears::address_resolution) {
        hear_address_resolution(fd_.get());
        address.sll_protocol = htons(ETH_P_ALL);
    }
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        throw_errno(interface);
    }
    packet_mreq all{};
    all.mr_ifindex = address.sll_ifindex;
    all.mr_type = PACKET_MR_PROMISC;
    if (hears == Hears::address_resolution &&
        ::setsockopt(fd_.get(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) != 0) {
        throw_errno(interface);
    }
}

void PacketSocket::send(Bytes frame) {
    if (::send(fd_.get(), frame.data(), frame.size(), 0) < 0 && errno != ENOBUFS &&
        errno != EAGAIN) {
        throw_errno(interface_);
    }
}

std::optional<Frame> PacketSocket::receive(std::chrono::steady_clock::time_point deadline) {
    for (;;) {
        Frame frame(longest_heard);
        const ssize_t size = ::recv(fd_.get(), frame.data(), frame.size(), 0);
        if (size >= 0) {
            frame.resize(static_cast<size_t>(size));
            return frame;
        }
        if (errno != EAGAIN && errno != EINTR) {
            throw_errno(interface_);
        }
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        if (left.count() <= 0) {
            return std::nullopt;
        }
        pollfd poll{fd_.get(), POLLIN, 0};
        ::poll(&poll, 1, static_cast<int>(std::min<int64_t>(left.count(), 60'000)));
    }
}

} // namespace drover::tunnel
