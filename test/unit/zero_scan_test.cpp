// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/zero_scan.h"

#include <algorithm>
#include <random>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr size_t table = 8 * KiB;

// What the operations make of a disk that held something else, compared with what was read.
void check(const std::vector<std::byte>& content,
           uint64_t offset,
           const std::vector<Extent>& parts,
           size_t table_bytes) {
    std::vector<std::byte> packed = content;
    const std::vector<Op> ops = pack_ops(packed.data(), parts, table_bytes);
    CHECK(frame_prefix_size(ops.size()) <= table_bytes);
    std::vector<std::byte> disk(content.size(), std::byte{0xee});
    const std::byte* data = packed.data();
    uint64_t reached = offset;
    for (const Op& op : ops) {
        REQUIRE(op.where.offset >= reached); // in order, apart
        REQUIRE(op.where.length > 0);
        reached = op.where.end();
        REQUIRE(reached <= offset + content.size());
        const auto at = disk.begin() + static_cast<ptrdiff_t>(op.where.offset - offset);
        if (op.type == OpType::write) {
            std::copy_n(data, op.where.length, at);
            data += op.where.length;
        } else {
            REQUIRE((op.type == OpType::trim));
            std::fill_n(at, op.where.length, std::byte{0});
        }
    }
    std::vector<std::byte> expected(content.size(), std::byte{0xee});
    for (const Extent& part : parts) {
        std::copy_n(content.begin() + static_cast<ptrdiff_t>(part.offset - offset),
                    part.length,
                    expected.begin() + static_cast<ptrdiff_t>(part.offset - offset));
    }
    REQUIRE((disk == expected));
}

} // namespace

TEST_CASE("is_zero: one byte anywhere is enough") {
    for (const size_t length : {1, 2, 15, 16, 17, 31, 32, 33, 4095, 4096}) {
        std::vector<std::byte> bytes(length);
        CHECK(is_zero(bytes.data(), length));
        for (size_t i = 0; i < length; ++i) {
            bytes[i] = std::byte{1};
            REQUIRE_FALSE(is_zero(bytes.data(), length));
            bytes[i] = std::byte{0};
        }
    }
    CHECK(is_zero(nullptr, 0));
}

TEST_CASE("pack_ops: zeroes leave in units of 4 KiB, neighbours of a kind are one operation") {
    std::vector<std::byte> data(5 * 4096);
    data[0] = std::byte{1};
    data[4095 + 1] = std::byte{2};
    data[5 * 4096 - 1] = std::byte{3};
    const auto ops = pack_ops(data.data(), {{65536, 5 * 4096}}, table);
    CHECK((ops == std::vector<Op>{{OpType::write, {65536, 8192}},
                                  {OpType::trim, {65536 + 8192, 8192}},
                                  {OpType::write, {65536 + 16384, 4096}}}));
    CHECK(data[8192 + 4095] == std::byte{3}); // moved together
}

TEST_CASE("pack_ops: the odd end of a disk") {
    std::vector<std::byte> data(4096 + 777);
    CHECK((pack_ops(data.data(), {{4096, 4096 + 777}}, table) ==
           std::vector<Op>{{OpType::trim, {4096, 4096 + 777}}}));
    data.back() = std::byte{1};
    CHECK((pack_ops(data.data(), {{4096, 4096 + 777}}, table) ==
           std::vector<Op>{{OpType::trim, {4096, 4096}}, {OpType::write, {8192, 777}}}));
}

TEST_CASE("pack_ops: at random, the operations make the same content, and fit into their table") {
    std::mt19937 random(5);
    for (int round = 0; round < 3000; ++round) {
        // Parts as they come from masks of sub-blocks, not aligned to 4 KiB in small blocks.
        const uint64_t unit = std::vector<uint64_t>{256, 512, 4096}[random() % 3];
        const uint64_t offset = random() % 100 * unit;
        std::vector<Extent> parts;
        uint64_t at = offset;
        const size_t count = 1 + random() % 12;
        for (size_t i = 0; i < count; ++i) {
            const uint64_t length =
                unit * (1 + random() % 20) - (i + 1 == count ? random() % unit : 0);
            parts.push_back({at, length});
            at += length + unit * (1 + random() % 3);
        }
        std::vector<std::byte> content(parts.back().end() - offset);
        for (size_t i = 0; i < content.size(); i += 512) {
            if (random() % 2 == 0) {
                content[i + random() % std::min<size_t>(512, content.size() - i)] = std::byte{9};
            }
        }
        check(content,
              offset,
              parts,
              random() % 2 == 0 ? table : frame_prefix_size(count + 2 + random() % 4));
    }
}

TEST_CASE("pack_ops: alternating zeroes and data, more than the table holds") {
    std::vector<std::byte> content(4 * MiB);
    for (size_t i = 0; i < content.size(); i += 8192) {
        content[i] = std::byte{1};
    }
    check(content, 0, {{0, content.size()}}, table);
}
