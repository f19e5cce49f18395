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
