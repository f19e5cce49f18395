// SPDX-License-Identifier: GPL-2.0-or-later
// The link's cryptography, over queues; and the state file of a tunnel.
#include "common/error.h"
#include "common/sealed_json.h"
#include "tunnel/core/put_up.h"
#include "tunnel/dtls_session.h"
#include "tunnel/link.h"

#include <deque>

#include <doctest/doctest.h>

using namespace drover;
using namespace drover::tunnel;
using nlohmann::json;

namespace {

using Datagrams = std::deque<Frame>;
const Psk key{"vm", std::string(32, 'k')};

Bytes bytes_of(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

DtlsSession::Push into(Datagrams& queue) {
    return [&queue](Bytes bytes) { queue.emplace_back(bytes.begin(), bytes.end()); };
}

// The dialling and the answering end, with the handshake done if it can be.
struct Sessions {
    Datagrams to_server, to_client;
    CookieJar cookies;
    Psk client_key, server_key;
    std::optional<DtlsSession> client, server;
    bool client_done = false, server_done = false;

    explicit Sessions(const Psk& of_client = key, const Psk& of_server = key)
        : client_key(of_client), server_key(of_server) {
        client.emplace(client_key, nullptr, 1472, into(to_server));
        client->handshake();
        for (int i = 0; i < 100 && !(client_done && server_done); ++i) {
            turn();
        }
    }

    void turn() {
        if (!to_server.empty()) {
            const Frame datagram = std::move(to_server.front());
            to_server.pop_front();
            if (!server) {
                const auto prestate = cookies.admit(bytes_of("client"), datagram, into(to_client));
                if (!prestate) {
                    return;
                }
                server.emplace(server_key, &*prestate, 1472, into(to_client));
            }
            server_done = server->handshake(datagram) || server_done;
        }
        if (!to_client.empty()) {
            const Frame datagram = std::move(to_client.front());
            to_client.pop_front();
            client_done = client->handshake(datagram) || client_done;
        }
    }

    std::vector<std::string> received(const Frame& datagram) {
        std::vector<std::string> records;
        const bool goes_on = server->receive(datagram, [&](Bytes bytes, uint64_t) {
            records.emplace_back(bytes.begin(), bytes.end());
        });
        CHECK(goes_on);
        return records;
    }
};

} // namespace

TEST_CASE("two ends with the same key talk; records come with growing numbers") {
    Sessions both;
    REQUIRE(both.client_done);
    REQUIRE(both.server_done);
    CHECK(both.client->cipher().find("DHE") != std::string::npos); // a leaked key opens nothing old
    CHECK(both.client->overhead() > 20);
    const std::string largest(1472 - both.client->overhead(), 'x');
    both.client->send(bytes_of("one"));
    both.client->send(bytes_of(largest));
    REQUIRE(both.to_server.size() == 2);
    CHECK(both.to_server[1].size() == 1472);
    std::vector<uint64_t> numbers;
    for (const Frame& datagram : both.to_server) {
        both.server->receive(datagram, [&](Bytes, uint64_t number) { numbers.push_back(number); });
    }
    REQUIRE(numbers.size() == 2);
    CHECK(numbers[0] < numbers[1]);
}

TEST_CASE("a replayed, a damaged and a foreign datagram are dropped, and the session goes on") {
    Sessions both;
    both.client->send(bytes_of("one"));
    const Frame first = both.to_server.back();
    CHECK(both.received(first) == std::vector<std::string>{"one"});
    CHECK(both.received(first).empty());
    both.client->send(bytes_of("two"));
    Frame damaged = both.to_server.back();
    for (size_t i = 0; i < damaged.size(); ++i) {
        damaged[i] ^= 0x40;
        CHECK_MESSAGE(both.received(damaged).empty(), i);
        damaged[i] ^= 0x40;
    }
    CHECK(both.received(Frame(100, 0x16)).empty());
    CHECK(both.received(Frame{23}).empty());
    CHECK(both.received(damaged) == std::vector<std::string>{"two"}); // whole again
}

TEST_CASE("records out of order are taken, within the window, once each") {
    Sessions both;
    for (int i = 0; i < 5; ++i) {
        both.client->send(bytes_of(std::to_string(i)));
    }
    std::string taken;
    for (const size_t i : {4, 2, 3, 2, 0, 4, 1}) {
        for (const std::string& record : both.received(both.to_server[i])) {
            taken += record;
        }
    }
    CHECK(taken == "42301");
}

TEST_CASE("another key, or another name, opens nothing") {
    const Psk others[] = {{"vm", std::string(32, 'j')}, {"other", key.key}};
    for (const Psk& other : others) {
        try {
            Sessions both(other, key);
            CHECK_FALSE(both.server_done);
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::peer);
        }
    }
}

TEST_CASE("no state is kept of who does not return the cookie") {
    CookieJar jar;
    Datagrams from_client, answers;
    DtlsSession client(key, nullptr, 1472, into(from_client));
    client.handshake();
    REQUIRE(from_client.size() == 1);
    CHECK_FALSE(jar.admit(bytes_of("a"), from_client[0], into(answers)));
    REQUIRE(answers.size() == 1);
    CHECK(answers[0].size() <= from_client[0].size()); // nothing is amplified
    client.handshake(answers[0]);
    REQUIRE(from_client.size() == 2);
    CHECK_FALSE(jar.admit(bytes_of("b"), from_client[1], into(answers))); // from another address
    CHECK_FALSE(CookieJar().admit(bytes_of("a"), from_client[1], into(answers)));
    CHECK(jar.admit(bytes_of("a"), from_client[1], into(answers)));
    answers.clear();
    for (const size_t size : {1UL, 12UL, 13UL, 40UL}) { // noise gets no answer
        CHECK_FALSE(jar.admit(bytes_of("a"), Frame(size, 0x55), into(answers)));
    }
    CHECK(answers.empty());
}

TEST_CASE("a key file is one line") {
    CHECK(parse_psk("vm:" + std::string(32, 'a') + "\n", "F").user == "vm");
    CHECK(parse_psk("vm:" + std::string(32, '0'), "F").key == std::string(16, '\0'));
    for (const std::string& text : {std::string(),
                                    std::string("vm"),
                                    ":" + std::string(32, 'a'),
                                    "vm:" + std::string(30, 'a'),
                                    "vm:" + std::string(32, 'g'),
                                    "vm:" + std::string(32, 'a') + "\n\n"}) {
        CHECK_THROWS_AS(parse_psk(text, "F"), Error);
    }
}

TEST_CASE("addresses of the link") {
    CHECK(parse_socket_address("10.0.0.1:4789").storage.ss_family == AF_INET);
    CHECK(parse_socket_address("[2001:db8::1]:4789").storage.ss_family == AF_INET6);
    CHECK(parse_socket_address("*:4789").storage.ss_family == AF_INET6);
    CHECK(parse_socket_address("10.0.0.1:1") == parse_socket_address("10.0.0.1:1"));
    CHECK_FALSE(parse_socket_address("10.0.0.1:1") == parse_socket_address("10.0.0.1:2"));
    for (const char* text :
         {"", "10.0.0.1", ":1", "2001:db8::1", "2001:db8::1:4789", "name:1", "10.0.0.1:x"}) {
        CHECK_THROWS_AS(parse_socket_address(text), Error);
    }
}

TEST_CASE("the state file is read back as it was written, and refused otherwise") {
    const PutUp put_up{"vm", Role::away, "mac ...", "tap0", "drover_0123456789ab", true, "vm0", 64};
    const std::string text = put_up_text(put_up);
    CHECK(parse_put_up(text, "F") == put_up);
    const auto refused = [](const std::string& bytes) {
        try {
            parse_put_up(bytes, "F");
            return false;
        } catch (const Error& error) {
            return error.kind() == ErrorKind::refused;
        }
    };
    for (size_t length = 0; length < text.size(); ++length) {
        CHECK(refused(text.substr(0, length)));
    }
    json object = *unsealed(std::string_view(text).substr(0, text.size() - 1));
    for (const auto& item : object.items()) {
        const std::string name = item.key();
        json without = object;
        without.erase(name);
        CHECK_MESSAGE(refused(sealed(without)), name);
    }
    object["version"] = 2;
    CHECK(refused(sealed(object)));
    object["version"] = 1;
    object["table"] = "x; flush ruleset";
    CHECK(refused(sealed(object)));
}
