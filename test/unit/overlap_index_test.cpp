// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/overlap_index.h"

#include <random>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;

TEST_CASE("overlap index: the last one that touched any of the bytes") {
    OverlapIndex index;
    CHECK((index.last({0, 1000}) == Lsn(0)));
    index.touch({100, 100}, Lsn(1));
    CHECK((index.last({0, 100}) == Lsn(0)));
    CHECK((index.last({0, 101}) == Lsn(1)));
    CHECK((index.last({199, 1}) == Lsn(1)));
    CHECK((index.last({200, 1}) == Lsn(0)));
    index.touch({140, 20}, Lsn(2)); // splits the first
    CHECK((index.last({100, 40}) == Lsn(1)));
    CHECK((index.last({139, 2}) == Lsn(2)));
    CHECK((index.last({160, 40}) == Lsn(1)));
    CHECK(index.size() == 3);
    index.touch({0, 1000}, Lsn(3));
    CHECK(index.size() == 1);
    index.forget({0, 1000}, Lsn(2));
    CHECK((index.last({500, 1}) == Lsn(3)));
    index.forget({999, 1}, Lsn(3));
    CHECK(index.size() == 0);
}

TEST_CASE("overlap index: at random, as a table of bytes says") {
    constexpr uint64_t size = 300;
    std::mt19937_64 random(11);
    for (int round = 0; round < 200; ++round) {
        OverlapIndex index;
        std::vector<uint64_t> table(size, 0);
        std::vector<Extent> touched{{}};
        uint64_t lsn = 0, watermark = 0;
        for (int step = 0; step < 200; ++step) {
            const uint64_t offset = random() % size;
            const Extent range{offset, 1 + random() % std::min<uint64_t>(size - offset, 60)};
            if (random() % 3 != 0) {
                index.touch(range, Lsn(++lsn));
                touched.push_back(range);
                std::fill_n(
                    table.begin() + static_cast<ptrdiff_t>(range.offset), range.length, lsn);
            } else if (watermark < lsn) {
                // As the source does: each acknowledged operation, with its own range.
                ++watermark;
                index.forget(touched[watermark], Lsn(watermark));
                for (uint64_t& at : table) {
                    at = at <= watermark ? 0 : at;
                }
            }
            uint64_t expected = 0;
            for (uint64_t at = range.offset; at < range.end(); ++at) {
                expected = std::max(expected, table[at]);
            }
            REQUIRE(index.last(range).v == expected);
        }
        while (watermark < lsn) {
            ++watermark;
            index.forget(touched[watermark], Lsn(watermark));
        }
        CHECK(index.size() == 0); // nothing leaks
    }
}
