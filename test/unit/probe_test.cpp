// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/json_rpc.h"
#include "migrator/probe.h"

#include <thread>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <doctest/doctest.h>

using namespace drover;
using rpc::Json;

namespace {

const std::string word(probe_word_digits, 'a'), another(probe_word_digits, 'b');
constexpr milliseconds long_enough{20000}, moment{700};

SiteConfig site() {
    SiteConfig config;
    config.listen = "127.0.0.1";
    config.ports = {22470, 22479};
    config.limits.disks = 2;
    config.limits.nics = 1;
    return config;
}

// As it comes from a line: small numbers in our braces would be signed ones.
Json params(const Json& given) {
    return Json::parse(given.dump());
}

} // namespace

TEST_CASE("who connects to a probed port hears the word, and a datagram with it comes back") {
    const SiteConfig config = site();
    asio::io_context context(1);
    Probe probe(context.get_executor(), config);
    const Json answer = probe.open(params({{"word", word}, {"tcp", 3}, {"udp", 1}}));
    REQUIRE(answer["tcp"].size() == 3);
    REQUIRE(answer["udp"].size() == 1);
    auto guard = asio::make_work_guard(context);
    std::thread loop([&context] { context.run(); });
    for (const Json& port : answer["tcp"]) {
        CHECK(probe_tcp("127.0.0.1", port, word, long_enough).empty());
        CHECK(probe_tcp("127.0.0.1", port, word, long_enough).empty());
        CHECK(probe_tcp("127.0.0.1", port, another, long_enough) ==
              "something else answers there, and not the agent");
    }
    CHECK(probe_udp("127.0.0.1", answer["udp"][0], word, long_enough).empty());
    CHECK(probe_udp("127.0.0.1", answer["udp"][0], another, moment) == "nothing comes back");
    CHECK(probe_tcp("127.0.0.1", 22479, word, long_enough) == "Connection refused");
    guard.reset();
    context.stop();
    loop.join();
}

TEST_CASE("the agent probes no more than a VM may have here, and nothing but that") {
    const SiteConfig config = site();
    asio::io_context context(1);
    Probe probe(context.get_executor(), config);
    for (const Json& wrong : {Json{{"word", word}, {"tcp", 4}, {"udp", 0}},
                              Json{{"word", word}, {"tcp", 1}, {"udp", 2}},
                              Json{{"word", word}, {"tcp", -1}, {"udp", 0}},
                              Json{{"word", word}, {"tcp", 1}},
                              Json{{"word", "x"}, {"tcp", 1}, {"udp", 0}},
                              Json{{"word", word}, {"tcp", 1}, {"udp", 0}, {"address", "::"}},
                              Json{{"tcp", 1}, {"udp", 0}}}) {
        CAPTURE(wrong.dump());
        try {
            probe.open(params(wrong));
            FAIL("it was opened");
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::usage);
        }
    }
    // Asked again, it gives the ports of the first time back.
    for (int i = 0; i < 9; ++i) {
        CHECK(probe.open(params({{"word", word}, {"tcp", 3}, {"udp", 1}}))["tcp"].size() == 3);
    }
}
