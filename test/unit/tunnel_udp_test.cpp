// SPDX-License-Identifier: GPL-2.0-or-later
// Datagrams sent and received together.
#include "tunnel/udp.h"

#include <algorithm>

#include <doctest/doctest.h>

using namespace drover;
using namespace drover::tunnel;

TEST_CASE("datagrams arrive one by one and in order, however they were sent") {
    for (const bool refused : {false, true}) {
        const UniqueFd receiver = bound_socket(parse_socket_address("127.0.0.1:0"));
        SocketAddress address;
        address.size = sizeof address.storage;
        ::getsockname(receiver.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size);
        const UniqueFd connected = connected_socket(address);
        const UniqueFd other = bound_socket(parse_socket_address("127.0.0.1:0"));
        const int no_checksums = refused ? 1 : 0; // then the kernel does not send several at once
        for (const int fd : {connected.get(), other.get()}) {
            ::setsockopt(fd, SOL_SOCKET, SO_NO_CHECK, &no_checksums, sizeof no_checksums);
        }
        std::vector<Frame> sent, received;
        std::vector<SocketAddress> peers;
        Outbox outbox;
        for (size_t i = 0; i < 150; ++i) {
            const size_t size = i == 70 ? 99 : i == 80 ? 1201 : i < 100 ? 1200 : 1;
            sent.emplace_back(size, static_cast<uint8_t>(i));
            if (i % 50 == 7) {
                outbox.add(other.get(), address, sent.back());
            } else {
                outbox.add(connected.get(), {}, sent.back());
            }
        }
        outbox.flush();
        outbox.flush();
        std::vector<uint8_t> buffer(65536);
        size_t calls = 0;
        for (; const auto got = receive_from(receiver.get(), buffer); ++calls) {
            for (Bytes rest = got->bytes; !rest.empty();) {
                const Bytes one = rest.first(std::min(got->size, rest.size()));
                received.emplace_back(one.begin(), one.end());
                peers.push_back(got->peer);
                rest = rest.subspan(one.size());
            }
        }
        CHECK(received == sent);
        CHECK(calls <= (refused ? 150 : 20));
        REQUIRE(peers.size() == 150);
        CHECK(peers[7] == peers[57]);
        CHECK_FALSE(peers[7] == peers[6]);
        CHECK(peers[6] == peers[8]);
    }
}
