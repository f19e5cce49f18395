// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"
#include "nbd-proxy/core/compression.h"

#include <algorithm>
#include <map>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t frame = 256 * KiB;
constexpr unsigned threads = 2;

// What a level costs and gains; of text, about.
struct Level {
    double bytes_per_us, ratio;
};
constexpr std::array<Level, Compression::levels.size()> text{
    {{0, 1}, {500, 0.5}, {250, 0.36}, {150, 0.34}, {90, 0.33}, {50, 0.325}, {25, 0.32}}};
constexpr std::array<Level, Compression::levels.size()> noise{
    {{0, 1}, {900, 1}, {800, 1}, {300, 1}, {120, 1}, {100, 1}, {40, 1}}};

// A link of so many bytes/us, always full or waiting for the coding threads.
struct Model {
    Compression compression{threads};
    double link;
    std::map<Compression::Step, unsigned> used;

    void run(const std::array<Level, Compression::levels.size()>& levels, double seconds) {
        for (double ticks = seconds * 10; ticks > 0; --ticks) {
            double us = 0, sent = 0;
            bool late = false;
            while (us < 100'000) {
                const Compression::Step step = compression.next();
                ++used[step];
                const double link_us = frame * levels[step].ratio / link;
                double coding_us = 0;
                if (step != 0) {
                    compression.coded(step,
                                      frame,
                                      static_cast<uint64_t>(frame * levels[step].ratio),
                                      static_cast<uint64_t>(frame / levels[step].bytes_per_us));
                    coding_us = frame / levels[step].bytes_per_us / threads;
                }
                us += std::max(link_us, coding_us);
                late = late || coding_us > link_us;
                sent += frame * levels[step].ratio;
            }
            compression.tick(static_cast<uint64_t>(sent),
                             static_cast<uint64_t>(us),
                             late ? Compression::Bound::coding : Compression::Bound::link);
        }
    }
    unsigned all() const {
        unsigned sum = 0;
        for (const auto& [step, count] : used) {
            sum += count;
        }
        return sum;
    }
};

} // namespace

TEST_CASE("compression: a slow link gets what shrinks compressed, and no harder than it gains") {
    Model model{.link = 6};
    model.run(text, 20);
    CHECK(Compression::levels[model.compression.step()] >= 1);
    CHECK(Compression::levels[model.compression.step()] <= 6);
    CHECK(model.used[0] + model.used[1] < model.all() / 10);
}

TEST_CASE("compression: a very slow link gets no more than the last percents are worth") {
    Model model{.link = 0.6};
    model.run(text, 100);
    CHECK(model.compression.step() >= 2);
    CHECK(model.compression.step() <= 4);
}

TEST_CASE("compression: a link that is faster than the coding is left alone") {
    Model model{.link = 1200};
    model.run(text, 20);
    CHECK(model.compression.step() == 0);
    CHECK(model.used[0] > model.all() / 100 * 99);
}

TEST_CASE("compression: data that does not shrink is not tried on every frame, but now and then") {
    Model model{.link = 6};
    model.run(noise, 60);
    CHECK(model.compression.step() == 0);
    CHECK(model.used[0] > model.all() / 100 * 97);
    model.run(text, 20);
    CHECK(model.compression.step() >= 2);
    model.run(noise, 20);
    CHECK(model.compression.step() == 0);
}

TEST_CASE("compression: a link that gets faster is followed") {
    Model model{.link = 1};
    model.run(text, 20);
    CHECK(model.compression.step() >= 2);
    model.link = 1200;
    model.run(text, 20);
    CHECK(model.compression.step() <= 1);
    model.link = 1;
    model.run(text, 20);
    CHECK(model.compression.step() >= 2);
}

TEST_CASE("compression: nothing is tried before the link is known") {
    Compression compression(threads);
    for (int i = 0; i < 1000; ++i) {
        CHECK(compression.next() == 0);
    }
}

TEST_CASE("compression: runs of what does not shrink are skipped for longer and longer") {
    ShrinkGuess guess;
    unsigned tried = 0;
    for (int i = 0; i < 1000; ++i) {
        if (guess.worth_trying()) {
            ++tried;
            guess.tried(false);
        }
    }
    CHECK(tried < 40);
    CHECK(tried > 20);
    while (!guess.worth_trying()) {
    }
    guess.tried(true);
    CHECK(guess.worth_trying());
    guess.tried(true);
    CHECK(guess.worth_trying());
}
