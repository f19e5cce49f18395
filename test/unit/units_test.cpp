// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"

#include <limits>
#include <type_traits>

#include <doctest/doctest.h>

using namespace drover;

static_assert(!std::is_convertible_v<uint64_t, Lsn>);
static_assert(Lsn(1) < Lsn(2) && Lsn() == Lsn(0));
static_assert(Extent{0, 10}.overlaps({9, 1}) && !Extent{0, 10}.overlaps({10, 1}));
static_assert(!Extent{5, 0}.overlaps({5, 0}) && !Extent{4, 4}.overlaps({0, 4}));
static_assert(round_down(4097, 4096) == 4096 && round_up(4097, 4096) == 8192);
static_assert(round_up(0, 4096) == 0 && round_up(4096, 4096) == 4096);

TEST_CASE("sizes are read with binary units") {
    CHECK(parse_size("0") == 0);
    CHECK(parse_size("4096") == 4096);
    CHECK(parse_size("512B") == 512);
    CHECK(parse_size("64K") == 64 * KiB);
    CHECK(parse_size("64k") == 64 * KiB);
    CHECK(parse_size("64KiB") == 64 * KiB);
    CHECK(parse_size("1MB") == MiB);
    CHECK(parse_size("3G") == 3 * GiB);
    CHECK(parse_size("8T") == 8 * TiB);
    CHECK(parse_size("1P") == 1024 * TiB);
    CHECK(parse_size("15E") == 15 * 1024 * 1024 * TiB);
    CHECK(parse_size("18446744073709551615") == std::numeric_limits<uint64_t>::max());
}

TEST_CASE("what is not a size is none") {
    for (const char* text : {"",
                             "K",
                             "-1",
                             "+1",
                             " 1",
                             "1 ",
                             "1 K",
                             "1.5G",
                             "0x10",
                             "1X",
                             "1Kib",
                             "1KK",
                             "1iB",
                             "1BB",
                             "16E",
                             "18446744073709551616",
                             "18014398509481984K"}) {
        CAPTURE(text);
        CHECK(!parse_size(text));
    }
}

TEST_CASE("sizes are written for people") {
    CHECK(format_size(0) == "0 B");
    CHECK(format_size(1023) == "1023 B");
    CHECK(format_size(1024) == "1.0 KiB");
    CHECK(format_size(1536 * MiB) == "1.5 GiB");
    CHECK(format_size(8 * TiB) == "8.0 TiB");
    CHECK(format_size(std::numeric_limits<uint64_t>::max()) == "16.0 EiB");
}
