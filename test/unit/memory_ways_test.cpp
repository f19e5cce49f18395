// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "migrator/memory_ways.h"

#include <doctest/doctest.h>

using namespace drover;
using rpc::Json;

TEST_CASE("how the memory goes is the same at the other end") {
    MemoryWays ways;
    CHECK(MemoryWays::of(ways.json()) == ways);
    ways.compress = "zstd";
    ways.connections = 16;
    ways.auto_converge = true;
    CHECK(MemoryWays::of(ways.json()) == ways);
    ways.compress = "xbzrle";
    ways.connections = 1;
    ways.postcopy = true;
    CHECK(MemoryWays::of(ways.json()) == ways);
}

TEST_CASE("what QEMU can't do together is refused, at both ends") {
    const Json plain = MemoryWays{}.json();
    const auto refused = [&](const Json& change) {
        Json given = plain;
        given.update(change);
        CHECK_THROWS_AS(MemoryWays::of(given), Error);
    };
    refused({{"connections", 2}, {"postcopy", true}});
    refused({{"compress", "zstd"}, {"postcopy", true}});
    refused({{"compress", "xbzrle"}, {"connections", 2}});
    refused({{"compress", "gzip"}});
    refused({{"compress", 1}});
    refused({{"connections", 0}});
    refused({{"connections", 17}});
    refused({{"connections", uint64_t{1} << 32 | 1}});
    refused({{"connections", -1}});
    refused({{"postcopy", "yes"}});
    refused({{"speed", 9}});
    CHECK_THROWS_AS(MemoryWays::of(Json::array()), Error);
}
