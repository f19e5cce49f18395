// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/written_blocks.h"

#include <thread>

#include <doctest/doctest.h>

using namespace drover;

TEST_CASE("written blocks: those that a write touches, and no others") {
    WrittenBlocks written({.disk_size = 200 * 64 * KiB + 1, .block_size = 64 * KiB});
    written.mark({0, 0});
    CHECK_FALSE(written.has(0));
    written.mark({2 * 64 * KiB - 1, 2});
    written.mark({200 * 64 * KiB, 1});
    for (uint64_t block = 0; block <= 200; ++block) {
        CAPTURE(block);
        CHECK(written.has(block) == (block == 1 || block == 2 || block == 200));
    }
}

TEST_CASE("written blocks: no mark is lost between threads") {
    constexpr uint64_t blocks = 4096;
    WrittenBlocks written({.disk_size = blocks * 4 * KiB, .block_size = 4 * KiB});
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 4; ++i) {
        threads.emplace_back([&written, i] {
            for (uint64_t block = i; block < blocks; block += 4) {
                written.mark({block * 4 * KiB, 512});
            }
        });
    }
    for (std::thread& each : threads) {
        each.join();
    }
    uint64_t marked = 0;
    for (uint64_t block = 0; block < blocks; ++block) {
        marked += written.has(block) ? 1 : 0;
    }
    CHECK(marked == blocks);
}
