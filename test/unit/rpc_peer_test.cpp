// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/rpc_peer.h"

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <doctest/doctest.h>

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace drover;
using rpc::Json;

namespace {

// Our end as a peer, the other one as plain bytes.
struct Pair {
    asio::io_context context{1};
    UniqueFd raw;
    std::shared_ptr<RpcPeer> peer;

    explicit Pair(RpcPeer::Events events = {}) {
        ::signal(SIGPIPE, SIG_IGN);
        int ends[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        raw.reset(ends[0]);
        UniqueFd input(ends[1]), output(::dup(ends[1]));
        peer = RpcPeer::create(context.get_executor(),
                               "the peer",
                               std::move(input),
                               std::move(output),
                               std::move(events));
    }
    void say(const std::string& text) {
        REQUIRE(::write(raw.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    }
    std::string heard() {
        char buffer[4096];
        const ssize_t got = ::recv(raw.get(), buffer, sizeof buffer, MSG_DONTWAIT);
        return {buffer, static_cast<size_t>(std::max<ssize_t>(got, 0))};
    }
    // A call's result, or its error.
    struct Outcome {
        bool over = false;
        Json result;
        std::optional<Error> error;
    };
    std::shared_ptr<Outcome> call(const std::string& method, milliseconds patience) {
        auto outcome = std::make_shared<Outcome>();
        auto done = [outcome](std::exception_ptr failure, Json result) {
            outcome->over = true;
            outcome->result = std::move(result);
            try {
                if (failure) {
                    std::rethrow_exception(failure);
                }
            } catch (const Error& error) {
                outcome->error = error;
            }
        };
        asio::co_spawn(context, peer->call(method, Json::object(), patience), std::move(done));
        return outcome;
    }
    void run(milliseconds time = milliseconds(50)) {
        context.restart();
        context.run_for(time);
    }
};

} // namespace

TEST_CASE("peer: replies find their calls, in any order") {
    Pair pair;
    const auto first = pair.call("first", milliseconds(5000));
    const auto second = pair.call("second", milliseconds(5000));
    pair.run(milliseconds(20));
    const std::string asked = pair.heard();
    CHECK(asked.find("\"method\":\"first\"") < asked.find("\"method\":\"second\""));
    pair.say("{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"n\":2}}\n{\"jsonrpc\":\"2.0\",\"id\":1,");
    pair.run(milliseconds(20));
    CHECK(second->over);
    CHECK(!first->over);
    pair.say("\"error\":{\"code\":6,\"message\":\"never\"}}\n");
    pair.run(milliseconds(20));
    CHECK(second->result["n"] == 2);
    REQUIRE(first->error);
    CHECK(first->error->kind() == ErrorKind::refused);
    CHECK(std::string(first->error->what()) == "the peer: first: never");
}

TEST_CASE("peer: a call has a deadline, and its late reply is nobody's") {
    Pair pair;
    const auto late = pair.call("slow", milliseconds(10));
    pair.run();
    REQUIRE(late->error);
    CHECK(late->error->kind() == ErrorKind::timeout);
    pair.say("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
    pair.run(milliseconds(20));
    CHECK(!pair.peer->closed());
}

TEST_CASE("peer: when the connection ends, so do its calls, with the reason") {
    std::string reason;
    RpcPeer::Events events;
    events.on_close = [&reason](const std::string& why) { reason = why; };
    Pair pair(std::move(events));
    const auto waiting = pair.call("wait", milliseconds(5000));
    SUBCASE("end of file") {
        pair.raw.reset();
        pair.run();
        CHECK(reason == "it closed the connection");
    }
    SUBCASE("something else than the protocol") {
        pair.say("Welcome to site b!\n");
        pair.run();
        CHECK(reason.find("Welcome to site b!") != std::string::npos);
    }
    REQUIRE(waiting->error);
    CHECK(waiting->error->kind() == ErrorKind::peer);
    const auto after = pair.call("more", milliseconds(5000));
    pair.run();
    REQUIRE(after->error);
    CHECK(after->error->kind() == ErrorKind::peer);
}

TEST_CASE("peer: requests, notifications and replies") {
    std::vector<std::string> seen;
    RpcPeer* answering = nullptr;
    RpcPeer::Events events;
    events.on_request = [&](rpc::Request request) {
        seen.push_back("request " + request.method);
        if (request.method == "good") {
            answering->reply(request.id, Json{{"ok", true}});
        } else {
            answering->reply(request.id, Error(ErrorKind::state, "not now"));
        }
    };
    events.on_notification = [&](rpc::Request request) {
        seen.push_back("told " + request.method);
    };
    Pair pair(std::move(events));
    answering = pair.peer.get();
    pair.say("{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"good\"}\n"
             "{\"jsonrpc\":\"2.0\",\"method\":\"news\"}\n"
             "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"bad\"}\n");
    pair.run();
    CHECK(seen == std::vector<std::string>{"request good", "told news", "request bad"});
    const std::string said = pair.heard();
    CHECK(said.find("{\"id\":\"a\",\"jsonrpc\":\"2.0\",\"result\":{\"ok\":true}}") !=
          std::string::npos);
    CHECK(said.find("\"code\":1") != std::string::npos);
    pair.peer->close("the test is over");
}

TEST_CASE("peer: a message larger than a socket's buffer arrives whole") {
    Pair pair;
    pair.peer->notify("large", Json{{"data", std::string(700000, 'x')}});
    size_t got = 0;
    for (int i = 0; i < 200 && got < 700000; ++i) {
        pair.run(milliseconds(2));
        got += pair.heard().size();
    }
    CHECK(got > 700000);
}

TEST_CASE("peer: one that never reads is closed, and costs a bounded amount of memory") {
    std::string reason;
    Pair pair(RpcPeer::Events{{}, {}, [&](const std::string& why) { reason = why; }});
    const Json params{{"text", std::string(max_queued_bytes / 16, 'x')}};
    for (int i = 0; i < 10 && !pair.peer->closed(); ++i) {
        pair.peer->notify("tell", params);
        pair.context.poll();
    }
    CHECK_FALSE(pair.peer->closed());
    for (int i = 0; i < 10 && !pair.peer->closed(); ++i) {
        pair.peer->notify("tell", params);
        pair.context.poll();
    }
    CHECK(pair.peer->closed());
    CHECK(reason == "it does not read what it is told");
}
