// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/handshake_watch.h"
#include "test/unit/nbd_server.h"

#include <poll.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

// Both ends of a TCP connection, and what the accepting one knows the other by.
struct Connection {
    explicit Connection(const Listener& listener)
        : client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        to.sin_port = htons(listener.port);
        REQUIRE(connect(client.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
        sockaddr_storage from{};
        socklen_t length = sizeof from;
        server = UniqueFd(accept(listener.fd.get(), reinterpret_cast<sockaddr*>(&from), &length));
        REQUIRE(server);
        peer.assign(reinterpret_cast<const char*>(&from), length);
    }
    // The client sees the end of it within that time.
    bool ends(std::chrono::milliseconds time) const {
        pollfd fd{.fd = client.get(), .events = POLLIN};
        char byte = 0;
        return ::poll(&fd, 1, static_cast<int>(time.count())) == 1 &&
               recv(client.get(), &byte, 1, 0) == 0;
    }

    UniqueFd client, server;
    std::string peer;
};

} // namespace

TEST_CASE("handshake watch: who never opens anything is sent away, everybody else stays") {
    const Listener listener;
    HandshakeWatch watch(50ms);
    const Connection silent(listener), known(listener), unwatched(listener);
    watch.came(silent.peer);
    watch.came(known.peer);
    watch.opened(known.peer);
    CHECK(silent.ends(20s));
    CHECK_FALSE(known.ends(0ms));
    CHECK_FALSE(unwatched.ends(0ms));
    // One that comes from the same address is a new one.
    watch.came(silent.peer);
    watch.came(known.peer);
    CHECK(known.ends(20s));
    CHECK_FALSE(unwatched.ends(0ms));
}

TEST_CASE("handshake watch: its end waits for nobody") {
    const Listener listener;
    const Connection silent(listener);
    HandshakeWatch watch(1h);
    watch.came(silent.peer);
}
