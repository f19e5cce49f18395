// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"
#include "nbd-proxy/core/connection_count.h"

#include <functional>

#include <doctest/doctest.h>

using namespace drover;

namespace {

// A stream whose rate and losses depend on how many connections it has.
struct Model {
    std::function<uint64_t(unsigned)> bytes_per_s;
    std::function<uint64_t(unsigned)> lost_of_a_million;
    unsigned connections = 2;
    ConnectionCount count{16};
    ConnectionCount::Totals totals;
    uint64_t now_us = 1'000'000;

    // Returns how many connections it ends with.
    unsigned run(unsigned seconds, bool held_back = true) {
        for (unsigned tick = 0; tick < 10 * seconds; ++tick) {
            now_us += 100'000;
            const uint64_t bytes = bytes_per_s(connections) / 10;
            totals.answered_bytes += bytes;
            totals.segments += bytes / 1000;
            totals.retransmitted += bytes / 1000 * lost_of_a_million(connections) / 1'000'000;
            connections += count.more(totals, held_back, connections, now_us);
        }
        return connections;
    }
};

uint64_t in_proportion(unsigned connections) {
    return connections * MiB;
}
uint64_t hundredth(unsigned) {
    return 10'000;
}

} // namespace

TEST_CASE("connection count: grows while losses hold each connection back") {
    Model model{in_proportion, hundredth};
    CHECK(model.run(2) == 2);
    CHECK(model.run(60) == 16);
    Model wide{[](unsigned n) { return std::min(n, 7U) * MiB; }, hundredth};
    CHECK(wide.run(60) == 16); // 8 was faster than 4
}

TEST_CASE("connection count: a link that is full, or does not lose, keeps what it has") {
    Model full{[](unsigned) { return 20 * MiB; }, hundredth};
    CHECK(full.run(120) == 4);
    Model clean{in_proportion, [](unsigned) { return 0; }};
    CHECK(clean.run(120) == 2);
    Model idle{in_proportion, hundredth};
    CHECK(idle.run(120, false) == 2);
}

TEST_CASE("connection count: a new session, whose connections begin at nothing") {
    Model model{in_proportion, hundredth};
    model.run(3);
    model.totals.segments = model.totals.retransmitted = 0;
    CHECK(model.run(60) == 16);
}
