// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"
#include "nbd-proxy/core/drain_rate.h"

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t tick_us = 100'000;
constexpr uint64_t frame = 256 * KiB;

struct Model {
    DrainRate rate{frame};
    DrainRate::Totals totals{.left = 1000 * MiB};
    uint64_t now_us = 1'000'000;

    uint64_t round_trip_us = 0;

    Model() { rate.tick(totals, round_trip_us, now_us); }
    // Ticks in each of which so much is acknowledged.
    void run(unsigned ticks, uint64_t acknowledged, uint64_t zeroes = 0) {
        for (; ticks > 0; --ticks) {
            now_us += tick_us;
            totals.acknowledged += acknowledged;
            totals.zeroes += zeroes;
            totals.left -= std::min(totals.left, acknowledged + zeroes);
            rate.tick(totals, round_trip_us, now_us);
        }
    }
};

} // namespace

TEST_CASE("drain rate: what a full link has drained, smoothed") {
    Model model;
    model.run(10, MiB);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    model.run(60, MiB / 2);
    CHECK(model.rate.bytes_per_s() < 5 * MiB + 64 * KiB);
    CHECK(model.rate.bytes_per_s() >= 5 * MiB - 64);
}

TEST_CASE("drain rate: an idle link says nothing of what it can carry") {
    Model model;
    model.run(10, MiB);
    model.totals.left = 4 * KiB;
    model.run(100, 0);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    CHECK_FALSE(model.rate.stalled());
    model.totals.left = 64 * KiB; // less than a tick takes: all that there is
    model.run(1, 64 * KiB);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    model.totals.left = 1000 * MiB; // full at once, after a long time of nothing
    model.run(1, MiB);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
}

TEST_CASE("drain rate: what is on its way is no sign of a full link") {
    Model model;
    model.run(10, MiB);
    model.round_trip_us = 200'000;
    // Writers who are slowed down to 0.9 of it; all that they have made waits for its answer.
    model.totals.left = 9 * MiB / 10 * 2 + 64 * KiB;
    for (unsigned tick = 0; tick < 100; ++tick) {
        model.totals.left += 9 * MiB / 10;
        model.run(1, 9 * MiB / 10);
    }
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    model.totals.left = 1000 * MiB; // what waits beyond that is
    model.run(50, MiB / 2);
    CHECK(model.rate.bytes_per_s() < 6 * MiB);
}

TEST_CASE("drain rate: a link that falls silent is stalled, and keeps its rate") {
    Model model;
    model.run(10, MiB);
    model.run(10, 0);
    CHECK_FALSE(model.rate.stalled());
    model.run(1, 0);
    CHECK(model.rate.stalled());
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    model.run(1, MiB);
    CHECK_FALSE(model.rate.stalled());
}

TEST_CASE("drain rate: answers that are seconds apart make an even rate, and no stall") {
    Model model;
    const auto answer_each_four_seconds = [&](unsigned times) {
        for (; times > 0; --times) {
            model.run(39, 0);
            CHECK_FALSE(model.rate.stalled());
            model.run(1, frame);
        }
    };
    answer_each_four_seconds(20);
    CHECK(model.rate.bytes_per_s() == frame / 4);
}

TEST_CASE("drain rate: what comes in lumps is no more than it is") {
    Model model;
    for (unsigned second = 0; second < 60; ++second) {
        model.run(5, 2 * MiB);
        model.run(4, 0);
        model.run(1, 64 * KiB);
    }
    const uint64_t mean = 10 * MiB + 64 * KiB;
    CHECK(model.rate.bytes_per_s() < mean * 6 / 5);
    CHECK(model.rate.bytes_per_s() > mean * 2 / 5);
}

TEST_CASE("drain rate: zeroes are no data, and do not lower it where they are most of the work") {
    Model model;
    model.run(10, MiB);
    model.run(50, 24, MiB);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    model.run(50, MiB / 2, 64 * KiB);
    CHECK(model.rate.bytes_per_s() < 6 * MiB);
}

TEST_CASE("drain rate: what writers make") {
    Model model;
    for (unsigned tick = 0; tick < 60; ++tick) {
        model.totals.made += 100 * KiB;
        model.run(1, MiB);
    }
    CHECK(model.rate.write_bytes_per_s() > 990 * KiB);
    CHECK(model.rate.write_bytes_per_s() <= 1000 * KiB);
    model.totals.made = 0; // what was dirty became less: nobody wrote
    model.run(60, MiB);
    CHECK(model.rate.write_bytes_per_s() < KiB);
}

TEST_CASE("drain rate: a pause of which nothing is known counts as nothing") {
    Model model;
    model.run(10, MiB);
    model.now_us += 60'000'000;
    model.rate.resume();
    model.run(2, MiB);
    CHECK(model.rate.bytes_per_s() == 10 * MiB);
    CHECK_FALSE(model.rate.stalled());
}
