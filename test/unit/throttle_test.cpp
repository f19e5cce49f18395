// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/throttle.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t tick_us = 100'000;
constexpr uint64_t write_bytes = 4 * KiB;

// Clients that write as fast as they are let, against a link of a rate, in steps of a millisecond:
// every write is new work.
struct Model {
    explicit Model(uint64_t link_rate, uint64_t left_at_start = 0)
        : drain_rate(link_rate), left(left_at_start) {}

    struct Writer {
        Throttle::ClientId id = 0;
        uint64_t rate = 0; // it asks for, bytes/s
        unsigned depth = 16;
        uint64_t regions = 1; // of the disk, that it writes evenly
        double hot_share = 0; // of its writes that go to region 0
        uint64_t owed = 0;    // bytes that it would have written by now
        uint64_t written = 0, waits = 0, cold_writes = 0, cold_waits = 0;
        struct Waiting {
            uint64_t until;
            Throttle::Wait wait;
        };
        std::vector<Waiting> waiting = {};
    };

    void add(Writer writer) {
        writer.id = writers.size() + 1;
        writers.push_back(std::move(writer));
    }

    void write(Writer& writer) {
        const bool hot = std::bernoulli_distribution(writer.hot_share)(random);
        const uint64_t offset = hot ? 0 : random() % writer.regions * MiB;
        const Throttle::Wait wait = throttle.wait_for(writer.id, offset, write_bytes, now_us);
        writer.waits += wait.us != 0;
        writer.cold_writes += !hot;
        writer.cold_waits += !hot && wait.us != 0;
        longest_us = std::max(longest_us, wait.us);
        if (wait.us != 0) {
            writer.waiting.push_back({now_us + wait.us, wait});
        }
        throttle.wrote(writer.id, offset, write_bytes);
        writer.owed -= write_bytes;
        writer.written += write_bytes;
        left += write_bytes;
    }

    void run(uint64_t seconds) {
        for (const uint64_t end_us = now_us + seconds * 1'000'000; now_us < end_us;
             now_us += 1000) {
            const uint64_t before = total_written();
            for (Writer& writer : writers) {
                std::erase_if(writer.waiting, [&](const Writer::Waiting& each) {
                    const bool over = each.until <= now_us;
                    if (over) {
                        throttle.waited(writer.id, each.wait, each.wait.us);
                    }
                    return over;
                });
                writer.owed = std::min<uint64_t>(writer.owed + writer.rate / 1000, MiB);
                while (writer.owed >= write_bytes && writer.waiting.size() < writer.depth) {
                    write(writer);
                }
            }
            made += total_written() - before;
            left -= std::min(left, drain_rate / 1000);
            if (now_us % tick_us == 0) {
                write_rate = (7 * write_rate + std::exchange(made, 0) * 10) / 8;
                throttle.tick({drain_rate, write_rate, left, left < drain_rate / 4, stalled},
                              now_us);
            }
        }
    }
    uint64_t total_written() const {
        uint64_t sum = 0;
        for (const Writer& writer : writers) {
            sum += writer.written;
        }
        return sum;
    }

    Throttle throttle;
    uint64_t drain_rate, left;
    std::vector<Writer> writers;
    bool stalled = false;
    uint64_t now_us = 1'000'000, made = 0, write_rate = 0, longest_us = 0;
    std::minstd_rand random{7};
};

} // namespace

TEST_CASE("throttle: writers that the link keeps up with never wait") {
    Model model(20 * MiB, 100 * MiB);
    model.add({.rate = 10 * MiB});
    model.run(30);
    CHECK_FALSE(model.throttle.active());
    CHECK(model.writers[0].waits == 0);
    CHECK(model.throttle.clients().empty());
}

TEST_CASE("throttle: a writer that asks for more than the link gets most of it, and it converges") {
    Model model(10 * MiB, 50 * MiB);
    model.add({.rate = 80 * MiB, .regions = 64});
    model.run(60);
    CHECK(model.left < model.drain_rate);
    CHECK(model.throttle.active());
    const uint64_t before = model.writers[0].written;
    model.run(10);
    const uint64_t rate = (model.writers[0].written - before) / 10;
    CHECK(rate > model.drain_rate * 8 / 10);
    CHECK(rate <= model.drain_rate);
    CHECK(model.longest_us <= 1'000'000);
    CHECK(model.throttle.clients().at(0).delayed_writes > 0);
}

TEST_CASE(
    "throttle: a write waits no longer than the limit, which grows while that does not help") {
    Throttle throttle;
    uint64_t now_us = 0, left = 100 * MiB;
    const auto tick = [&](unsigned times, bool ready = false) {
        for (; times > 0; --times) {
            throttle.wrote(1, 0, MiB);
            if (const auto wait = throttle.wait_for(1, 0, MiB, now_us); wait.us != 0) {
                throttle.waited(1, wait, wait.us);
            }
            now_us += tick_us;
            throttle.tick({MiB, 10 * MiB, left += MiB, ready}, now_us);
        }
    };
    tick(5);
    REQUIRE(throttle.active());
    CHECK(throttle.longest_delay_us() == 50'000);
    tick(10);
    CHECK(throttle.longest_delay_us() == 100'000);
    SUBCASE("up to the last one; where that does not help either it is given up for a while") {
        tick(40);
        CHECK(throttle.longest_delay_us() == 1'000'000);
        tick(90);
        CHECK(throttle.active());
        tick(20);
        CHECK_FALSE(throttle.active());
        tick(200);
        CHECK_FALSE(throttle.active());
        tick(100);
        CHECK(throttle.active());
    }
    SUBCASE("once ready the first one counts again: a pause of the guest waits for its writes") {
        tick(20);
        tick(1, true);
        CHECK(throttle.longest_delay_us() == 50'000);
    }
    SUBCASE("while it helps it goes back") {
        left = 0;
        tick(10);
        CHECK(throttle.longest_delay_us() == 50'000);
    }
}

TEST_CASE("throttle: nobody waits for a link that has fallen silent") {
    Model model(10 * MiB, 20 * MiB);
    model.add({.rate = 80 * MiB});
    model.run(10);
    REQUIRE(model.throttle.active());
    model.stalled = true;
    model.run(1);
    CHECK_FALSE(model.throttle.active());
    const uint64_t before = model.writers[0].waits;
    model.run(30);
    CHECK(model.writers[0].waits == before);
    model.stalled = false;
    model.run(2);
    CHECK(model.throttle.active());
}

TEST_CASE("throttle: a client that writes little does not wait for another that writes much") {
    Model model(10 * MiB, 50 * MiB);
    model.add({.rate = 80 * MiB});
    model.add({.rate = MiB});
    model.run(30);
    CHECK(model.writers[0].waits > 0);
    CHECK(model.writers[1].waits == 0);
    CHECK(model.writers[1].written > 29 * MiB);
}

TEST_CASE("throttle: two greedy clients get the same") {
    Model model(10 * MiB, 50 * MiB);
    model.add({.rate = 80 * MiB});
    model.add({.rate = 40 * MiB});
    model.run(10);
    const uint64_t first = model.writers[0].written, second = model.writers[1].written;
    model.run(30);
    const double ratio = static_cast<double>(model.writers[0].written - first) /
                         static_cast<double>(model.writers[1].written - second);
    CHECK(ratio > 0.8);
    CHECK(ratio < 1.25);
}

TEST_CASE("throttle: of a client's writes the hot regions wait, the cold ones do not") {
    Model model(10 * MiB, 20 * MiB);
    model.add({.rate = 14 * MiB, .regions = 100, .hot_share = 0.9});
    model.run(20);
    const Model::Writer& writer = model.writers[0];
    CHECK(writer.waits > 100);
    CHECK(writer.cold_writes > 100);
    CHECK(writer.cold_waits * 50 < writer.cold_writes);
}

TEST_CASE("throttle: where the writes are spread evenly, all of them wait") {
    Model model(10 * MiB, 20 * MiB);
    model.add({.rate = 80 * MiB, .regions = 200});
    model.run(60);
    CHECK(model.left < model.drain_rate);
}

TEST_CASE("throttle: only so many writes of a client wait long") {
    Throttle throttle;
    for (uint64_t tick = 1; tick <= 10; ++tick) {
        throttle.wrote(1, 0, 8 * MiB);
        throttle.tick({.drain_rate = MiB, .write_rate = 80 * MiB, .left = 100 * MiB},
                      tick * tick_us);
    }
    REQUIRE(throttle.active());
    std::vector<uint64_t> delays;
    for (unsigned i = 0; i < 100; ++i) {
        delays.push_back(throttle.wait_for(1, 0, 64 * KiB, 10 * tick_us).us);
    }
    const uint64_t longest = throttle.longest_delay_us();
    CHECK(std::count(delays.begin(), delays.end(), longest) <= 12);
    CHECK(delays.back() == longest / 12);
    CHECK(throttle.wait_for(1, 0, 0, 10 * tick_us).us == 0);   // what makes no work never waits
    CHECK(throttle.wait_for(2, 0, MiB, 10 * tick_us).us == 0); // nor who was not seen to make any
}

TEST_CASE("throttle: it ends when told, and by itself once nobody asks for too much") {
    Model model(10 * MiB, 20 * MiB);
    model.add({.rate = 80 * MiB});
    model.run(10);
    REQUIRE(model.throttle.active());
    SUBCASE("released") {
        model.throttle.release();
        CHECK_FALSE(model.throttle.active());
        CHECK(model.throttle.wait_for(1, 0, MiB, model.now_us).us == 0);
        model.run(5); // and the writer is as greedy as before
        CHECK(model.throttle.active());
    }
    SUBCASE("calm") {
        model.writers[0].rate = 2 * MiB;
        model.run(30);
        CHECK_FALSE(model.throttle.active());
        CHECK(model.throttle.clients().at(0).share == 0);
        model.writers[0].rate = 0;
        model.run(30);
        CHECK(model.throttle.clients().empty());
    }
}
