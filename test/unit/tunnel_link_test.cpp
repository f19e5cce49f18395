// SPDX-License-Identifier: GPL-2.0-or-later
// The link over loopback: a new session replaces the old one without a gap, a peer that is another
// one is found out, and an end that has started anew is dialled again. The time is the test's own.
#include "tunnel/link.h"

#include <doctest/doctest.h>

using namespace drover::tunnel;

namespace {

const Psk key{"vm", std::string(32, 'k')};

struct Peer {
    std::optional<Link> link;
    std::vector<Frame> frames;
    std::vector<HoldQueue::Order> orders;
    Phase phase = Phase::ready; // of the other one

    void open(const LinkOptions& options, uint64_t now) {
        link.emplace(options,
                     Link::Events{[this](const Record& record, HoldQueue::Order order) {
                                      const Bytes bytes = std::get<WholeFrame>(record).frame;
                                      frames.emplace_back(bytes.begin(), bytes.end());
                                      orders.push_back(order);
                                  },
                                  [this](Phase told) { phase = told; }},
                     now);
    }
    void send(uint8_t value) {
        Frame record(60, value);
        record[0] = 3;
        link->send(record);
    }
    void turn(uint64_t now) {
        link->tick(now);
        std::vector<pollfd> polls;
        link->add_polls(polls);
        if (::poll(polls.data(), polls.size(), 1) > 0) {
            for (const pollfd& each : polls) {
                if (each.revents != 0) {
                    link->readable(each.fd, now);
                }
            }
        }
    }
};

// A port of loopback that is free now.
SocketAddress free_address() {
    const drover::UniqueFd fd(::socket(AF_INET, SOCK_DGRAM, 0));
    SocketAddress address = parse_socket_address("127.0.0.1:0");
    REQUIRE(::bind(fd.get(), address.get(), address.size) == 0);
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size);
    return address;
}

// What stands between them maps every port of the dialling end to one and the same.
struct Nat {
    drover::UniqueFd inside{::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)};
    drover::UniqueFd outside{::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0)};
    SocketAddress address, last;

    explicit Nat(const SocketAddress& to) : address(parse_socket_address("127.0.0.1:0")) {
        REQUIRE(::bind(inside.get(), address.get(), address.size) == 0);
        ::getsockname(inside.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size);
        REQUIRE(::connect(outside.get(), to.get(), to.size) == 0);
    }
    void turn() {
        uint8_t buffer[2048];
        SocketAddress from;
        from.size = sizeof from.storage;
        for (ssize_t size; (size = ::recvfrom(inside.get(),
                                              buffer,
                                              sizeof buffer,
                                              0,
                                              reinterpret_cast<sockaddr*>(&from.storage),
                                              &from.size)) > 0;) {
            last = from;
            ::send(outside.get(), buffer, static_cast<size_t>(size), 0);
        }
        for (ssize_t size; (size = ::recv(outside.get(), buffer, sizeof buffer, 0)) > 0;) {
            ::sendto(inside.get(), buffer, static_cast<size_t>(size), 0, last.get(), last.size);
        }
    }
};

struct Pair {
    LinkOptions dials, listens;
    Peer home, away;
    uint64_t now = 1000;

    Pair() {
        dials.dials = true;
        dials.address = listens.address = free_address();
        dials.psk = listens.psk = key;
    }
    void open() {
        away.open(listens, now);
        home.open(dials, now);
    }
    // Real time goes on too (the handshake's repeats are GnuTLS's own), so it is bounded by turns.
    template <class Condition>
    bool until(Condition condition, int turns = 2000) {
        for (int i = 0; i < turns && !condition(); ++i) {
            now += 20;
            home.turn(now);
            away.turn(now);
        }
        return condition();
    }
    bool up() const { return home.link->up() && away.link->up(); }
};

} // namespace

TEST_CASE("both ends are up, hear of the phase, and find the size of datagrams") {
    Pair pair;
    pair.open();
    CHECK(pair.home.link->room() == 0);
    REQUIRE(pair.until([&] { return pair.up(); }));
    pair.home.link->set_phase(Phase::diverted, pair.now);
    CHECK(pair.until([&] { return pair.away.phase == Phase::diverted; }));
    CHECK(pair.until([&] { return pair.home.link->status().datagram_size == 1472; }));
    CHECK(pair.home.link->status().round_trip_us.has_value());
    pair.home.send(7);
    CHECK(pair.until([&] { return pair.away.frames.size() == 1; }));
}

TEST_CASE("a session is replaced by a new one, and no frame is lost or comes twice") {
    Pair pair;
    pair.dials.rekey_ms = 2000;
    pair.open();
    REQUIRE(pair.until([&] { return pair.up(); }));
    uint8_t sent_home = 0, sent_away = 0;
    const auto replaced = [&] { return pair.home.link->status().sessions >= 4; };
    while (!replaced() && sent_home < 250) {
        for (int i = 0; i < 5; ++i) {
            pair.home.turn(pair.now += 20);
            pair.away.turn(pair.now);
        }
        CHECK(pair.up());
        pair.home.send(++sent_home);
        pair.away.send(++sent_away);
    }
    CHECK(replaced());
    CHECK(pair.until([&] {
        return pair.away.frames.size() == sent_home && pair.home.frames.size() == sent_away;
    }));
    for (const Peer* const peer : {&pair.home, &pair.away}) {
        for (size_t i = 0; i < peer->frames.size(); ++i) {
            CHECK(peer->frames[i][0] == i + 1);
            CHECK((i == 0 || peer->orders[i - 1] < peer->orders[i]));
        }
    }
}

TEST_CASE("many frames at once arrive as they were, in order") {
    Pair pair;
    pair.open();
    REQUIRE(pair.until([&] { return pair.up(); }));
    std::vector<Frame> sent;
    for (size_t i = 0; i < 300; ++i) {
        const size_t size = i % 100 < 90 ? 1100 : 60 + i; // whole batches, and what ends one
        Frame record(size, static_cast<uint8_t>(i));
        record[0] = 3;
        pair.home.link->send(record);
        sent.emplace_back(record.begin() + 1, record.end());
    }
    pair.home.link->flush();
    CHECK(pair.until([&] { return pair.away.frames.size() == sent.size(); }));
    CHECK(pair.away.frames == sent);
}

TEST_CASE("a peer that means another NIC is refused, with the reason") {
    Pair pair;
    pair.listens.identity[0] = 1;
    pair.open();
    CHECK(pair.until(
        [&] { return pair.home.link->status().error.find("another MAC") != std::string::npos; }));
    CHECK_FALSE(pair.home.link->up());
    CHECK_FALSE(pair.away.link->up());
    pair.home.send(1);
    pair.until([] { return false; }, 20);
    CHECK(pair.away.frames.empty());
}

TEST_CASE("an end that has started anew is dialled again, from either side") {
    Pair pair;
    pair.open();
    REQUIRE(pair.until([&] { return pair.up(); }));
    pair.away.open(pair.listens, pair.now);
    CHECK(pair.until([&] { return pair.up(); }));
    pair.home.open(pair.dials, pair.now);
    CHECK(pair.until([&] { return pair.up(); }));
    pair.away.frames.clear();
    pair.home.send(9);
    CHECK(pair.until([&] { return pair.away.frames.size() == 1; }));
}

TEST_CASE("an end that has started anew is heard although its address is the same as before") {
    Pair pair;
    Nat nat(pair.listens.address);
    pair.dials.address = nat.address;
    const auto up = [&] {
        nat.turn();
        return pair.up();
    };
    pair.open();
    REQUIRE(pair.until(up));
    const uint64_t before = pair.away.link->status().sessions;
    pair.home.link.reset();
    pair.home.open(pair.dials, pair.now);
    // The other end still takes the old session for alive.
    CHECK(pair.until([&] { return up() && pair.away.link->status().sessions > before; }));
    pair.away.frames.clear();
    CHECK(pair.until([&] {
        pair.home.send(9);
        nat.turn();
        return !pair.away.frames.empty();
    }));
}

TEST_CASE("strangers get few handshakes, and whoever has the key gets in all the same") {
    Pair pair;
    pair.listens.address.storage = pair.dials.address.storage;
    pair.away.open(pair.listens, pair.now);
    LinkOptions wrong = pair.dials;
    wrong.psk.key = std::string(32, 'x');
    std::vector<Peer> strangers(12);
    for (Peer& stranger : strangers) {
        stranger.open(wrong, pair.now);
    }
    for (int i = 0; i < 50; ++i) {
        pair.now += 20;
        for (Peer& stranger : strangers) {
            stranger.turn(pair.now);
        }
        pair.away.turn(pair.now);
    }
    CHECK(pair.away.link->status().sessions <= 16);
    strangers.clear();
    pair.home.open(pair.dials, pair.now);
    CHECK(pair.until([&] { return pair.up(); }));
}

TEST_CASE("an address that can't be reached yet is dialled again, and ends nothing") {
    Pair pair;
    pair.dials.address = parse_socket_address("255.255.255.255:9"); // EACCES
    pair.home.open(pair.dials, pair.now);
    for (int i = 0; i < 100; ++i) {
        pair.home.turn(pair.now += 100);
    }
    CHECK_FALSE(pair.home.link->status().error.empty());
    CHECK_FALSE(pair.home.link->up());
}
