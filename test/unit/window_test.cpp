// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"
#include "nbd-proxy/core/window.h"

#include <deque>

#include <doctest/doctest.h>

using namespace drover;

namespace {

// A link of a rate and a round trip with an endless queue in front, and a sender that keeps its
// window full of frames.
struct Link {
    Link(uint64_t rate, uint64_t round_trip) : bytes_per_s(rate), round_trip_us(round_trip) {}

    uint64_t bytes_per_s = 0, round_trip_us = 0;
    uint64_t frame = 256 * KiB;
    Window window{512 * KiB, 64 * MiB};

    uint64_t now_us = 1'000'000;
    uint64_t free_at_us = 0, in_flight = 0, largest = 0, sent = 0;
    struct Sent {
        uint64_t at_us, answered_us;
    };
    std::deque<Sent> frames;

    void run(uint64_t seconds) {
        const uint64_t end_us = now_us + seconds * 1'000'000;
        while (now_us < end_us) {
            while (in_flight < window.bytes()) {
                free_at_us = std::max(free_at_us, now_us) + frame * 1'000'000 / bytes_per_s;
                frames.push_back({now_us, free_at_us + round_trip_us});
                in_flight += frame;
                sent += frame;
            }
            largest = std::max(largest, in_flight);
            const Sent first = frames.front();
            frames.pop_front();
            now_us = std::max(now_us, first.answered_us);
            in_flight -= frame;
            window.acknowledged(frame, first.at_us, now_us);
        }
    }
};

} // namespace

TEST_CASE("window: starts at its floor") {
    const Window window(512 * KiB, 64 * MiB);
    CHECK(window.bytes() == 512 * KiB);
    CHECK(window.min_round_trip_us() == 0);
}

TEST_CASE("window: fills a WAN link within a second") {
    Link link{25'000'000, 40'000}; // 200 Mbit/s, 40 ms
    link.run(1);
    const uint64_t before = link.sent;
    link.run(4);
    CHECK(link.sent - before > 4 * 25'000'000 * 9 / 10);
    Link far{125'000'000, 200'000}; // 1 Gbit/s, 200 ms
    far.run(5);
    const uint64_t sent = far.sent;
    far.run(5);
    CHECK(far.sent - sent > 5ULL * 125'000'000 * 9 / 10);
}

TEST_CASE("window: stays near twice the bandwidth-delay product for as long as the bulk takes") {
    Link link{25'000'000, 40'000};
    link.run(300);
    const uint64_t product = 25'000'000 / 25;
    CHECK(link.window.bytes() < 5 * product);
    CHECK(link.largest < 8 * product);
    CHECK(link.sent > 300ULL * 25'000'000 * 9 / 10);
}

TEST_CASE("window: a local link keeps a few frames in flight") {
    Link link{3'000'000'000, 20};
    link.run(3);
    CHECK(link.window.bytes() <= 2 * MiB);
}

TEST_CASE("window: never beyond its ceiling") {
    Link link{1'250'000'000, 400'000};
    link.window = Window(512 * KiB, 8 * MiB);
    link.run(5);
    CHECK(link.largest <= 8 * MiB + link.frame);
}

TEST_CASE("window: a link that got longer is filled again") {
    Link link{25'000'000, 10'000};
    link.run(30);
    link.round_trip_us = 100'000;
    link.run(60);
    const uint64_t before = link.sent;
    link.run(10);
    CHECK(link.sent - before > 10ULL * 25'000'000 * 8 / 10);
}
