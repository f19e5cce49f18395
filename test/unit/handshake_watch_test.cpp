// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/handshake_watch.h"
#include "test/unit/nbd_server.h"

#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>

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

// One that has opened something within the limit, however slow the machine is.
Connection
in_time(const Listener& listener, HandshakeWatch& watch, std::chrono::milliseconds limit) {
    for (;;) {
        Connection connection(listener);
        const auto before = std::chrono::steady_clock::now();
        watch.came(connection.peer);
        watch.opened(connection.peer);
        if (std::chrono::steady_clock::now() - before < limit) {
            return connection;
        }
    }
}

// While it lives the process can't have another descriptor.
class NoDescriptorLeft {
public:
    NoDescriptorLeft() {
        REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
        UniqueFd next = another();
        const rlimit low{static_cast<rlim_t>(next.get()) + 4, before_.rlim_max};
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &low) == 0);
        for (; next; next = another()) {
            taken_.push_back(std::move(next));
        }
        CHECK(errno == EMFILE);
    }
    ~NoDescriptorLeft() { ::setrlimit(RLIMIT_NOFILE, &before_); }
    NoDescriptorLeft(const NoDescriptorLeft&) = delete;
    NoDescriptorLeft& operator=(const NoDescriptorLeft&) = delete;

private:
    static UniqueFd another() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

    rlimit before_{};
    std::vector<UniqueFd> taken_;
};

} // namespace

TEST_CASE("handshake watch: who never opens anything is sent away, everybody else stays") {
    const Listener listener;
    constexpr auto limit = 50ms;
    HandshakeWatch watch(limit);
    const Connection silent(listener), unwatched(listener);
    const Connection known = in_time(listener, watch, limit);
    watch.came(silent.peer);
    CHECK(silent.ends(20s));
    CHECK_FALSE(known.ends(0ms));
    CHECK_FALSE(unwatched.ends(0ms));
    // One that comes from the same address is a new one.
    watch.came(silent.peer);
    watch.came(known.peer);
    CHECK(known.ends(20s));
    CHECK_FALSE(unwatched.ends(0ms));
}

TEST_CASE("handshake watch: it needs no descriptor more when there is none") {
    const Listener listener;
    HandshakeWatch watch(50ms);
    const Connection silent(listener), unwatched(listener);
    const NoDescriptorLeft none;
    watch.came(silent.peer);
    CHECK(silent.ends(20s));
    CHECK_FALSE(unwatched.ends(0ms));
}

TEST_CASE("handshake watch: its end waits for nobody") {
    const Listener listener;
    const Connection silent(listener);
    HandshakeWatch watch(1h);
    watch.came(silent.peer);
}
