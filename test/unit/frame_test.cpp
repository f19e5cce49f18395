// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/frame.h"

#include <limits>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t disk_size = 1 * MiB + 777;

FrameHeader header(uint64_t first, uint64_t count, uint64_t after) {
    FrameHeader header;
    header.migration.fill(std::byte{0xab});
    header.stream = {3, 2, 1};
    header.first = Lsn(first);
    header.next = Lsn(first + count);
    header.after = Lsn(after);
    return header;
}

uint64_t data_of(const std::vector<Op>& ops) {
    uint64_t length = 0;
    for (const Op& op : ops) {
        length += has_data(op.type) ? op.where.length : 0;
    }
    return length;
}

std::vector<std::byte>
frame_of(const FrameHeader& header, const std::vector<Op>& ops, uint64_t data) {
    const size_t prefix = frame_prefix_size(ops.size());
    std::vector<std::byte> frame(prefix + data);
    for (size_t i = prefix; i < frame.size(); ++i) {
        frame[i] = static_cast<std::byte>(i * 7);
    }
    encode_frame(frame, header, ops);
    return frame;
}

bool refused(const FrameHeader& header, const std::vector<Op>& ops, uint64_t data) {
    std::string why;
    const bool taken = decode_frame(frame_of(header, ops, data), disk_size, &why).has_value();
    CHECK(taken == why.empty());
    return !taken;
}

} // namespace

TEST_CASE("frame: what goes in comes out") {
    const std::vector<Op> ops{{OpType::write, {0, 10}},
                              {OpType::zero, {disk_size - 1, 1}},
                              {OpType::trim, {4096, disk_size - 4096}},
                              {OpType::flush, {}},
                              {OpType::fill, {disk_size - 100, 100}},
                              {OpType::consistent, {}},
                              {OpType::inconsistent, {}},
                              {OpType::void_, {}},
                              {OpType::handover, {0, 32}}};
    const FrameHeader sent = header(5, ops.size(), 4);
    const auto bytes = frame_of(sent, ops, data_of(ops));
    std::string why;
    const auto frame = decode_frame(bytes, disk_size, &why);
    REQUIRE_MESSAGE(frame, why);
    CHECK((frame->ops == ops));
    CHECK((frame->header.migration == sent.migration));
    CHECK((frame->header.stream == sent.stream));
    CHECK((frame->header.first == sent.first));
    CHECK((frame->header.next == sent.next));
    CHECK((frame->header.after == sent.after));
    CHECK_FALSE(frame->header.open);
    CHECK_FALSE(frame->header.base);
    CHECK(frame->data.size() == 142);
    CHECK(frame->data.data() == bytes.data() + frame_prefix_size(ops.size()));
}

TEST_CASE("frame: an open frame carries a base or none, and nothing else") {
    std::string why;
    FrameHeader open = header(0, 0, 0);
    open.open = true;
    auto frame = decode_frame(frame_of(open, {}, 0), disk_size, &why);
    REQUIRE(frame);
    CHECK(frame->header.open);
    CHECK_FALSE(frame->header.base);
    open.base = Lsn(99);
    frame = decode_frame(frame_of(open, {}, 0), disk_size, &why);
    REQUIRE(frame);
    CHECK((frame->header.base == Lsn(99)));
    CHECK(refused(open, {{OpType::flush, {}}}, 0));
    CHECK(refused(open, {}, 1));
    FrameHeader ordinary = header(1, 1, 0);
    ordinary.base = Lsn(0);
    CHECK(refused(ordinary, {{OpType::flush, {}}}, 0));
}

TEST_CASE("frame: every single corrupted byte and every truncation is refused") {
    const std::vector<Op> ops{{OpType::write, {512, 300}}, {OpType::zero, {0, 512}}};
    const auto good = frame_of(header(1, 2, 0), ops, 300);
    std::string why;
    REQUIRE(decode_frame(good, disk_size, &why));
    size_t taken = 0;
    for (size_t i = 0; i < good.size(); ++i) {
        for (const unsigned flip : {1U, 0x80U, 0xffU}) {
            auto bad = good;
            bad[i] ^= static_cast<std::byte>(flip);
            taken += decode_frame(bad, disk_size, &why) ? 1 : 0;
        }
    }
    CHECK(taken == 0);
    for (size_t length = 0; length < good.size(); ++length) {
        // A block of its own, so that a sanitizer sees a read past its end.
        const std::vector<std::byte> cut(good.begin(),
                                         good.begin() + static_cast<ptrdiff_t>(length));
        taken += decode_frame(cut, disk_size, &why) ? 1 : 0;
    }
    CHECK(taken == 0);
    auto longer = good;
    longer.push_back(std::byte{0});
    CHECK_FALSE(decode_frame(longer, disk_size, &why));
}

TEST_CASE("frame: limits") {
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    const std::vector<Op> flush{{OpType::flush, {}}};
    CHECK_FALSE(refused(header(1, 1, 0), flush, 0));
    SUBCASE("LSNs") {
        CHECK(refused(header(0, 1, 0), flush, 0));
        CHECK(refused(header(1, 2, 0), flush, 0));
        CHECK(refused(header(1, 0, 0), {}, 0));
        CHECK(refused(header(7, 1, 7), flush, 0));    // after itself
        CHECK(refused(header(most, 1, 0), flush, 0)); // next wraps
    }
    SUBCASE("ranges") {
        CHECK(refused(header(1, 1, 0), {{OpType::zero, {0, 0}}}, 0));
        CHECK(refused(header(1, 1, 0), {{OpType::zero, {disk_size, 1}}}, 0));
        CHECK(refused(header(1, 1, 0), {{OpType::zero, {1, disk_size}}}, 0));
        CHECK(refused(header(1, 1, 0), {{OpType::zero, {most, 2}}}, 0)); // the end wraps
        CHECK(refused(header(1, 1, 0), {{OpType::trim, {2, most}}}, 0));
        CHECK(refused(header(1, 1, 0), {{OpType::flush, {0, 1}}}, 0));
        CHECK(refused(header(1, 1, 0), {{OpType::handover, {0, 31}}}, 31));
        CHECK(refused(header(1, 1, 0), {{OpType::handover, {1, 32}}}, 32));
    }
    SUBCASE("data") {
        CHECK(refused(header(1, 1, 0), {{OpType::write, {0, 11}}}, 10));
        CHECK(refused(header(1, 1, 0), {{OpType::write, {0, 9}}}, 10));
        CHECK(refused(header(1, 1, 0), {{OpType::zero, {0, 10}}}, 10));
        CHECK(refused(header(1, 2, 0), {{OpType::write, {0, 10}}, {OpType::write, {0, 1}}}, 10));
    }
    SUBCASE("types") {
        CHECK(refused(header(1, 1, 0), {{static_cast<OpType>(0), {0, 1}}}, 0));
        CHECK(refused(header(1, 1, 0), {{static_cast<OpType>(10), {}}}, 0));
    }
    SUBCASE("sizes") {
        const std::vector<Op> many(max_frame_ops, Op{OpType::flush, {}});
        CHECK_FALSE(refused(header(1, many.size(), 0), many, 0));
        const std::vector<Op> too_many(max_frame_ops + 1, Op{OpType::flush, {}});
        CHECK(refused(header(1, too_many.size(), 0), too_many, 0));
        std::string why;
        const FrameHeader one = header(1, 1, 0);
        const std::vector<Op> large{{OpType::write, {0, max_frame_data}}};
        CHECK(decode_frame(frame_of(one, large, max_frame_data), GiB, &why));
        const std::vector<Op> larger{{OpType::write, {0, max_frame_data + 1}}};
        CHECK_FALSE(decode_frame(frame_of(one, larger, max_frame_data + 1), GiB, &why));
    }
}

TEST_CASE("state: round trip, corruption, and durable never above applied") {
    ReplicaState state;
    state.uuid.fill(std::byte{1});
    state.boot.fill(std::byte{2});
    state.instance.fill(std::byte{3});
    state.migration.fill(std::byte{4});
    state.size = disk_size;
    state.block_size = 65536;
    state.generation = 9;
    state.stream = {9, 8, 7};
    state.applied = Lsn(100);
    state.durable = Lsn(90);
    const auto bytes = encode_state(state);
    std::string why;
    const auto back = decode_state(bytes, &why);
    REQUIRE(back);
    CHECK((encode_state(*back) == bytes));
    CHECK((back->uuid == state.uuid));
    CHECK((back->boot == state.boot));
    CHECK((back->instance == state.instance));
    CHECK((back->migration == state.migration));
    CHECK((back->stream == state.stream));
    CHECK((back->applied == state.applied));
    CHECK((back->durable == state.durable));
    CHECK(back->size == state.size);
    CHECK(back->block_size == state.block_size);
    CHECK(back->generation == state.generation);
    size_t taken = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
        auto bad = bytes;
        bad[i] ^= std::byte{0x10};
        taken += decode_state(bad, &why) ? 1 : 0;
    }
    CHECK(taken == 0);
    CHECK_FALSE(decode_state(std::span(bytes).first(511), &why));
    state.durable = Lsn(101);
    CHECK_FALSE(decode_state(encode_state(state), &why));
}

TEST_CASE("migration id: 32 lower-case hexadecimal digits") {
    const std::string text = "00112233445566778899aabbccddeeff";
    const auto id = parse_migration_id(text);
    REQUIRE(id);
    CHECK(to_string(*id) == text);
    for (const char* bad : {"",
                            "0011",
                            "00112233445566778899aabbccddeef",
                            "00112233445566778899AABBCCDDEEFF",
                            "00112233445566778899aabbccddeefg",
                            "00112233445566778899aabbccddeeff0"}) {
        CHECK_FALSE(parse_migration_id(bad));
    }
}
