// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/block_map.h"

#include <random>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint32_t block = 64 * KiB;
constexpr uint32_t sub = block / 16;

BlockMap map_of(uint64_t disk_size, uint32_t block_size = block) {
    return BlockMap({disk_size, block_size});
}

} // namespace

TEST_CASE("block map: sizes that are not a multiple of anything") {
    for (const uint64_t size : {uint64_t{1},
                                uint64_t{4095},
                                uint64_t{block - 1},
                                uint64_t{block},
                                uint64_t{block + 1},
                                64 * uint64_t{block},
                                64 * uint64_t{block} + 1,
                                65 * uint64_t{block} - 7,
                                4096 * uint64_t{block} + 3}) {
        CAPTURE(size);
        BlockMap map = map_of(size);
        CHECK(map.dirty_blocks() == 0);
        map.mark_all();
        CHECK(map.dirty_blocks() == (size + block - 1) / block);
        CHECK(map.dirty_bytes() == size);
        CHECK(map.run_of_full(0, ~uint64_t{0}) == map.dirty_blocks());
        const uint64_t last = map.dirty_blocks() - 1;
        CHECK(map.dirty(last));
        map.clear(last);
        CHECK(map.dirty_bytes() == last * block);
        map.mark({size - 1, 1}); // the last byte
        CHECK(map.dirty(last));
        map.mark({0, size});
        CHECK(map.dirty_bytes() == size);
        map.clear_all();
        CHECK(map.dirty_bytes() == 0);
        CHECK_FALSE(map.next_dirty(0, ~uint64_t{0}));
    }
    BlockMap none = map_of(0);
    none.mark_all();
    CHECK(none.dirty_blocks() == 0);
    CHECK_FALSE(none.next_dirty(0, ~uint64_t{0}));
}

TEST_CASE("block map: every sub-block that a range touches, no other") {
    BlockMap map = map_of(3 * block);
    map.mark({0, 0});
    CHECK(map.dirty_blocks() == 0);
    map.mark({0, 1});
    CHECK(map.mask(0) == 0x0001);
    map.mark({sub - 1, 2});
    CHECK(map.mask(0) == 0x0003);
    map.mark({block - 1, 2}); // across two blocks
    CHECK(map.mask(0) == 0x8003);
    CHECK(map.mask(1) == 0x0001);
    CHECK(map.mask(2) == 0);
    CHECK(map.dirty_bytes() == 4 * sub);
    map.mark({0, block});
    CHECK(map.mask(0) == BlockMap::full);
    map.mark({5, 1}); // full stays full
    CHECK(map.mask(0) == BlockMap::full);
    map.clear(0);
    CHECK(map.mask(0) == 0);
    CHECK(map.dirty_bytes() == sub);
}

TEST_CASE("block map: the last block, cut by the end of the disk") {
    BlockMap map = map_of(block + sub + 100);
    map.mark({block, 1});
    CHECK(map.mask(1) == 0x0001);
    CHECK(map.dirty_bytes() == sub);
    map.mark({block + sub, 1}); // does not reach the end
    CHECK(map.mask(1) == 0x0003);
    CHECK(map.dirty_bytes() == sub + 100);
    map.clear(1);
    map.mark({block, sub + 100});
    CHECK(map.mask(1) == BlockMap::full); // all that there is of it
    CHECK(map.dirty_bytes() == sub + 100);
    CHECK(map.run_of_full(1, 2) == 1);
}

TEST_CASE("block map: a run ends at a block that is clean, or dirty in part") {
    BlockMap map = map_of(10 * block);
    map.mark({block, 3 * block});
    map.mark({4 * block, 1});
    CHECK(map.next_dirty(0, 10) == 1);
    CHECK(map.run_of_full(1, 10) == 3);
    CHECK(map.run_of_full(1, 3) == 2);
    CHECK(map.run_of_full(4, 10) == 0);
    CHECK(map.next_dirty(5, 10) == std::nullopt);
    CHECK(map.next_dirty(4, 4) == std::nullopt);
    CHECK(map.next_dirty(4, 5) == 4);
}

TEST_CASE("block map: at random, as a table of sub-blocks says") {
    std::mt19937_64 random(3);
    for (const uint32_t block_size : {uint32_t{4096}, uint32_t{65536}}) {
        const uint64_t size = 130 * uint64_t{block_size} - random() % block_size;
        const uint64_t sub_size = block_size / 16;
        BlockMap map = map_of(size, block_size);
        std::vector<bool> table((size + sub_size - 1) / sub_size);
        for (int step = 0; step < 3000; ++step) {
            if (random() % 3 == 0) {
                const uint64_t at = random() % map.geometry().blocks();
                map.clear(at);
                for (uint64_t i = at * 16; i < std::min<uint64_t>(at * 16 + 16, table.size());
                     ++i) {
                    table[i] = false;
                }
            } else {
                const uint64_t offset = random() % size;
                const Extent range{
                    offset, 1 + random() % std::min<uint64_t>(size - offset, 3 * block_size)};
                map.mark(range);
                for (uint64_t i = range.offset / sub_size; i * sub_size < range.end(); ++i) {
                    table[i] = true;
                }
            }
            uint64_t bytes = 0, blocks = 0;
            std::optional<uint64_t> first;
            for (uint64_t at = 0; at < map.geometry().blocks(); ++at) {
                bool dirty = false;
                for (uint64_t i = at * 16; i < std::min<uint64_t>(at * 16 + 16, table.size());
                     ++i) {
                    dirty = dirty || table[i];
                    bytes += table[i] ? std::min(sub_size, size - i * sub_size) : 0;
                    if (step % 50 == 0) {
                        REQUIRE((map.mask(at) >> (i - at * 16) & 1) == (table[i] ? 1 : 0));
                    }
                }
                blocks += dirty ? 1 : 0;
                first = dirty && !first ? std::optional(at) : first;
            }
            REQUIRE(map.dirty_bytes() == bytes);
            REQUIRE(map.dirty_blocks() == blocks);
            REQUIRE(map.next_dirty(0, ~uint64_t{0}) == first);
        }
    }
}
