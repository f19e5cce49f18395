// SPDX-License-Identifier: GPL-2.0-or-later
// Framing, the queue of what is held, the table of flows, the size of datagrams, how long it is
// kept.
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/flow_table.h"
#include "tunnel/core/framing.h"
#include "tunnel/core/hold_queue.h"
#include "tunnel/core/keep.h"
#include "tunnel/core/path_mtu.h"

#include <algorithm>
#include <random>

#include <doctest/doctest.h>

using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

Frame pattern(size_t size) {
    Frame frame(size);
    for (size_t i = 0; i < size; ++i) {
        frame[i] = static_cast<uint8_t>(i * 7 + i / 256);
    }
    return frame;
}

std::vector<Frame> records_of(Splitter& splitter, const Frame& frame, size_t room) {
    std::vector<Frame> records;
    splitter.split(
        frame, room, [&](Bytes record) { records.emplace_back(record.begin(), record.end()); });
    return records;
}

std::optional<Frame> join(Joiner& joiner, const Frame& record, uint64_t session = 1) {
    return joiner.add(std::get<Piece>(*parse_record(record)), session);
}

} // namespace

TEST_CASE("a frame that fits is one record; one that does not is pieces, in any order") {
    Splitter splitter;
    for (const size_t room : {64UL, 1000UL, 1434UL}) {
        for (const size_t size :
             {15UL, room - 2, room - 1, room, room + 1, 2 * room, 1514UL, 9014UL}) {
            const Frame frame = pattern(size);
            auto records = records_of(splitter, frame, room);
            CHECK((records.size() == 1) == (size + 1 <= room));
            if (records.size() == 1) {
                const Bytes whole = std::get<WholeFrame>(*parse_record(records[0])).frame;
                CHECK(std::equal(whole.begin(), whole.end(), frame.begin(), frame.end()));
                continue;
            }
            std::shuffle(records.begin(), records.end(), std::mt19937(7));
            Joiner joiner;
            for (size_t i = 0; i < records.size(); ++i) {
                CHECK(records[i].size() <= room);
                const auto joined = join(joiner, records[i]);
                CHECK(joined.has_value() == (i + 1 == records.size()));
                CHECK((!joined || *joined == frame));
            }
            CHECK(joiner.unfinished() == 0);
        }
    }
}

TEST_CASE("a frame that is too large has no records") {
    Splitter splitter;
    CHECK(records_of(splitter, pattern(largest_frame), 1434).size() > 1);
    CHECK(records_of(splitter, pattern(largest_frame + 1), 1434).empty());
    CHECK(records_of(splitter, pattern(60000), 64).empty()); // more pieces than can be counted
}

TEST_CASE("what is not joined is forgotten, the oldest first, within bounds") {
    Splitter splitter;
    Joiner joiner;
    std::vector<std::vector<Frame>> all;
    for (size_t i = 0; i <= Joiner::most_frames; ++i) {
        all.push_back(records_of(splitter, pattern(1514), 1000));
        CHECK_FALSE(join(joiner, all.back()[0]));
        CHECK_FALSE(join(joiner, all.back()[0])); // the same again
    }
    CHECK(joiner.dropped() == 1);
    CHECK(joiner.unfinished() == Joiner::most_frames);
    CHECK_FALSE(join(joiner, all[0][1])); // its first piece has gone
    CHECK(join(joiner, all.back()[1]) == pattern(1514));

    // A peer that has started anew counts anew.
    Splitter first, second;
    const auto before = records_of(first, pattern(1514), 1000);
    const auto after = records_of(second, Frame(1514, 7), 1000);
    Joiner both;
    CHECK_FALSE(join(both, before[0], 1));
    CHECK_FALSE(join(both, after[1], 2));
    CHECK(join(both, after[0], 2) == Frame(1514, 7));

    Joiner large;
    for (int i = 0; i < 40; ++i) { // of 40 KB each, in 16 MiB of pieces that never end
        const auto records = records_of(splitter, pattern(60000), 40010);
        join(large, records[0]);
    }
    CHECK(large.unfinished() * 30000 <= Joiner::most_bytes);
}

TEST_CASE("pings are read as they were written, and nothing else is one") {
    Ping ping;
    ping.id = 0x12345678;
    ping.phase = Phase::returning;
    ping.identity[15] = 9;
    CHECK(std::get<Ping>(*parse_record(ping_record(ping))) == ping);
    CHECK(ping_record(ping, 1400).size() == 1400);
    CHECK(std::get<Ping>(*parse_record(ping_record(ping, 1400))) == ping);
    auto bytes = ping_record(ping);
    CHECK_FALSE(parse_record(Bytes(bytes).first(bytes.size() - 1)));
    bytes[1] = wire_version + 1;
    CHECK_FALSE(parse_record(bytes));
    bytes[1] = wire_version;
    bytes[2] = static_cast<uint8_t>(last_phase) + 1;
    CHECK_FALSE(parse_record(bytes));
    CHECK_FALSE(parse_record({}));
    CHECK_FALSE(parse_record(Frame{9, 1, 2, 3}));
    CHECK_FALSE(parse_record(Frame(14, 3)));                     // less than an Ethernet header
    CHECK_FALSE(parse_record(Frame{4, 1, 1, 0, 0, 0, 0, 0, 7})); // one piece is no piece
    CHECK_FALSE(parse_record(Frame{4, 2, 2, 0, 0, 0, 0, 0, 7})); // the third of two
    CHECK_FALSE(parse_record(Frame{4, 0, 2, 0, 0, 0, 0, 0}));    // nothing in it
}

TEST_CASE("what is held comes out in the order of sending, once, within bytes and age") {
    HoldQueue queue({10'000, 1000});
    queue.push({1, 3}, pattern(30), 0);
    queue.push({1, 1}, pattern(10), 0);
    queue.push({2, 0}, pattern(40), 0); // a later session
    queue.push({1, 2}, pattern(20), 0);
    queue.push({1, 2}, pattern(99), 0); // the same place again
    CHECK(queue.frames() == 4);
    for (const size_t size : {10UL, 20UL, 30UL, 40UL}) {
        CHECK(queue.pop()->size() == size);
    }
    CHECK_FALSE(queue.pop());
    CHECK(queue.bytes() == 0);

    for (uint64_t i = 0; i < 100; ++i) {
        queue.push({1, i}, pattern(1000), i);
    }
    CHECK(queue.frames() == 8); // 1,128 bytes each
    CHECK(queue.dropped_full() == 92);
    queue.expire(1004);
    CHECK(queue.dropped_old() == 4);
    CHECK(queue.frames() == 4);
    queue.expire(5000);
    CHECK(queue.frames() == 0);
    CHECK(queue.bytes() == 0);
}

namespace {

struct Flows {
    FlowTable table;
    explicit Flows(FlowLimits limits = {}) : table(limits) {}

    void tcp(bool from_vm, uint8_t flags, uint64_t now, uint16_t port = 4000) {
        const Frame frame =
            from_vm ? tcp_frame(gateway_mac, vm_mac, "10.1.0.10", 80, "10.9.0.2", port, flags)
                    : tcp_frame(vm_mac, gateway_mac, "10.9.0.2", port, "10.1.0.10", 80, flags);
        table.seen(*parse_frame(frame), from_vm, frame.size(), now);
    }
    std::string text() const {
        std::string counts;
        for (size_t i = 0; i < flow_classes; ++i) {
            counts += std::to_string(table.count(static_cast<FlowClass>(i))) + " ";
        }
        return counts;
    }
};

} // namespace

TEST_CASE("a TCP flow opens, lives, closes and is forgotten") {
    using namespace tcp_flag;
    Flows flows;
    flows.tcp(false, syn, 0);
    CHECK(flows.text() == "1 0 0 0 0 0 ");
    flows.tcp(true, syn | ack, 1);
    flows.tcp(false, ack, 2);
    CHECK(flows.text() == "0 1 0 0 0 0 ");
    flows.tcp(false, fin | ack, 3);
    flows.tcp(true, ack, 4);
    CHECK(flows.text() == "0 1 0 0 0 0 "); // half closed
    flows.tcp(true, fin | ack, 5);
    flows.tcp(false, ack, 6);
    CHECK(flows.text() == "0 0 1 0 0 0 ");
    flows.tcp(false, syn, 7); // the same ports again
    CHECK(flows.text() == "1 0 0 0 0 0 ");
    flows.table.expire(60'006);
    CHECK(flows.table.count() == 1);
    flows.table.expire(60'007);
    CHECK(flows.table.count() == 0);
    CHECK_FALSE(flows.table.oldest_ms(60'007));
}

TEST_CASE("a flow that is met in mid-life is live; a reset that is not taken does not end it") {
    using namespace tcp_flag;
    Flows flows;
    flows.tcp(true, ack, 1000);
    CHECK(flows.text() == "0 1 0 0 0 0 ");
    flows.tcp(false, rst, 2000);
    CHECK(flows.text() == "0 0 1 0 0 0 ");
    flows.tcp(true, ack, 3000);
    CHECK(flows.text() == "0 1 0 0 0 0 ");
    CHECK(flows.table.oldest_ms(4000) == 3000);
    CHECK(flows.table.idle_ms(4000) == 1000);
    flows.table.expire(3000 + 7'440'000 - 1);
    CHECK(flows.table.count() == 1);
    flows.table.expire(3000 + 7'440'000);
    CHECK(flows.table.count() == 0);
}

TEST_CASE("UDP and ICMP flows end by idle time; both directions are one flow") {
    Flows flows;
    const Frame there = udp_frame(vm_mac, gateway_mac, "10.9.0.2", 5, "10.1.0.10", 53, 100);
    const Frame back = udp_frame(gateway_mac, vm_mac, "10.1.0.10", 53, "10.9.0.2", 5);
    flows.table.seen(*parse_frame(there), false, there.size(), 0);
    flows.table.seen(*parse_frame(back), true, back.size(), 100);
    const Frame echo = ip_frame(
        vm_mac, gateway_mac, "10.9.0.2", "10.1.0.10", ip_icmp, Frame{8, 0, 0, 0, 1, 2, 0, 0});
    flows.table.seen(*parse_frame(echo), false, echo.size(), 100);
    CHECK(flows.text() == "0 0 0 1 1 0 ");
    CHECK(flows.table.bytes_to_vm() == there.size() + echo.size());
    CHECK(flows.table.bytes_from_vm() == back.size());
    flows.table.expire(30'100);
    CHECK(flows.text() == "0 0 0 1 0 0 ");
    flows.table.expire(120'100);
    CHECK(flows.table.count() == 0);
}

TEST_CASE("the table is bounded; what is least missed goes first") {
    using namespace tcp_flag;
    FlowLimits limits;
    limits.flows = 100;
    Flows flows(limits);
    flows.tcp(true, ack, 0, 9999);
    for (uint16_t port = 1; port <= 500; ++port) {
        flows.tcp(false, syn, port, port);
    }
    CHECK(flows.table.count() == 100);
    CHECK(flows.table.evicted() == 401);
    CHECK(flows.text() == "99 1 0 0 0 0 ");
}

TEST_CASE("the largest datagram that passes is found, and found again") {
    // A path of each size: seen to converge to within the step, never above it.
    for (const size_t path : {1200UL, 1252UL, 1300UL, 1392UL, 1464UL, 1472UL}) {
        PathMtu mtu(1472);
        CHECK(mtu.size() == PathMtu::base);
        uint64_t now = 0;
        for (; now < 60'000; now += 100) {
            if (const auto size = mtu.probe(now); size && *size <= path) {
                mtu.answered(*size, now + 20);
            }
            CHECK(mtu.size() <= path);
        }
        CHECK(mtu.size() + 8 > path);
    }
}

TEST_CASE("a path that takes everything is known at once; one that becomes narrow within seconds") {
    PathMtu mtu(1472);
    CHECK(mtu.probe(0) == 1472);
    CHECK_FALSE(mtu.probe(10));
    mtu.answered(1472, 40);
    CHECK(mtu.size() == 1472);
    uint64_t now = 1000;
    for (; now < 1'000'000 && mtu.size() == 1472; now += 100) {
        if (const auto size = mtu.probe(now); size && *size <= 1300) {
            mtu.answered(*size, now);
        }
    }
    CHECK(now < 6000);
    for (const uint64_t end = now + 60'000; now < end; now += 100) {
        if (const auto size = mtu.probe(now); size && *size <= 1300) {
            mtu.answered(*size, now);
        }
    }
    CHECK(mtu.size() > 1290);
    CHECK(mtu.size() <= 1300);
    // And one that has become wide again, later.
    for (const uint64_t end = now + 700'000; now < end; now += 100) {
        if (const auto size = mtu.probe(now)) {
            mtu.answered(*size, now);
        }
    }
    CHECK(mtu.size() == 1472);
}

TEST_CASE("a lost probe now and then changes nothing") {
    PathMtu mtu(1472);
    std::mt19937 random(3);
    uint64_t now = 0;
    mtu.probe(now);
    mtu.answered(1472, now);
    for (now = 1000; now < 3'000'000; now += 100) {
        if (const auto size = mtu.probe(now); size && random() % 100 != 0) {
            mtu.answered(*size, now);
        }
    }
    CHECK(mtu.size() == 1472);
}

TEST_CASE("how long it is kept") {
    CHECK(parse_duration_ms("30") == 30'000);
    CHECK(parse_duration_ms("30s") == 30'000);
    CHECK(parse_duration_ms("10m") == 600'000);
    CHECK(parse_duration_ms("12h") == 43'200'000);
    CHECK(parse_duration_ms("2d") == 172'800'000);
    for (const char* text : {"", "s", "-1s", "1w", "1 s", "99999999999999999999", "99999999999d"}) {
        CHECK_MESSAGE(!parse_duration_ms(text), text);
        CHECK_MESSAGE(!parse_keep(text), text);
    }
    Keep idle = *parse_keep("until-idle");
    idle.at_least_ms = 1000;
    CHECK(reason_to_end(idle, 0, 999) == "");
    CHECK(reason_to_end(idle, 1, 5000) == "");
    CHECK(reason_to_end(idle, 0, 1000) != "");
    CHECK(reason_to_end(*parse_keep("forever"), 0, 1'000'000'000) == "");
    CHECK(reason_to_end(*parse_keep("5s"), 9, 4999) == "");
    CHECK(reason_to_end(*parse_keep("5s"), 9, 5000) != "");
}
