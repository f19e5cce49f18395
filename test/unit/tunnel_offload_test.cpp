// SPDX-License-Identifier: GPL-2.0-or-later
// Large TCP packets, cut and joined.
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/offload.h"

#include <random>

#include <doctest/doctest.h>

using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

const Frame timestamps{1, 1, 8, 10, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr uint8_t ack = tcp_flag::ack, ack_psh = tcp_flag::ack | tcp_flag::psh;

size_t tcp_of(const Frame& frame) {
    return parse_frame(frame)->ip->payload;
}

void mend(Frame& frame) {
    uint8_t* const checksum = frame.data() + tcp_of(frame) + 16;
    put16(checksum, 0);
    put16(checksum, transport_sum(frame));
}

// Its data tells where in the connection it is.
Frame segment(bool v6,
              uint32_t sequence,
              size_t data,
              uint8_t flags = ack,
              const Frame& options = timestamps) {
    Frame frame = tcp_frame(vm_mac,
                            gateway_mac,
                            v6 ? "2001:db8:9::2" : "10.9.0.2",
                            4,
                            v6 ? "2001:db8:1::10" : "10.1.0.10",
                            80,
                            flags,
                            options,
                            data);
    put32(frame.data() + tcp_of(frame) + 4, sequence);
    for (size_t i = 0; i < data; ++i) {
        frame[frame.size() - data + i] = static_cast<uint8_t>((sequence + i) * 7 >> 3);
    }
    mend(frame);
    return frame;
}

bool right_header(const Frame& frame) {
    return frame[12] != 8 ||
           folded_checksum(sum_words(Bytes(frame).subspan(ethernet_header, 20))) == 0;
}

std::vector<Frame> cut(const Frame& frame, size_t segment_size, size_t most) {
    std::vector<Frame> frames;
    TcpCutter cutter;
    cutter.cut(frame, *parse_frame(frame), segment_size, most, [&](Bytes bytes) {
        frames.emplace_back(bytes.begin(), bytes.end());
    });
    return frames;
}

struct Out {
    Frame frame;
    Offload offload;
};

std::vector<Out> join(const std::vector<Frame>& frames) {
    std::vector<Out> joined;
    TcpJoiner joiner;
    const auto out = [&](Bytes bytes, const Offload& offload) {
        joined.push_back({Frame(bytes.begin(), bytes.end()), offload});
    };
    for (const Frame& frame : frames) {
        joiner.add(frame, *parse_frame(frame), out);
    }
    joiner.flush(out);
    joiner.flush(out);
    return joined;
}

} // namespace

TEST_CASE("offload: a sum is that of its words in network order, whatever the length") {
    std::mt19937 random(1);
    for (size_t size = 0; size < 70; ++size) {
        Frame bytes(size);
        uint32_t expected = 5;
        for (size_t i = 0; i < size; ++i) {
            bytes[i] = static_cast<uint8_t>(random());
            expected += i % 2 == 0 ? bytes[i] << 8 : bytes[i];
        }
        CHECK(folded_checksum(sum_words(bytes, 5)) == folded_checksum(expected));
    }
    CHECK(folded_checksum(sum_words(Frame(65536, 0xff))) == 0);
}

TEST_CASE("offload: a large TCP packet is cut into packets that fit, each right by itself") {
    for (const bool v6 : {false, true}) {
        constexpr uint32_t start = 0xfffff000; // numbers wrap
        const Frame frame = segment(v6, start, 10'000, ack_psh | tcp_flag::fin | tcp_flag::cwr);
        for (const size_t most : {1434UL, 1600UL}) {
            const auto frames = cut(frame, 1448, most);
            const size_t headers = frame.size() - 10'000,
                         data = std::min<size_t>(1448, most - headers);
            REQUIRE(frames.size() == (10'000 + data - 1) / data);
            Frame whole(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(headers));
            for (size_t i = 0; i < frames.size(); ++i) {
                const bool last = i + 1 == frames.size();
                CHECK((last ? frames[i].size() <= headers + data
                            : frames[i].size() == headers + data));
                const IpPacket ip = *parse_frame(frames[i])->ip;
                CHECK(ip.end == frames[i].size());
                CHECK(right_header(frames[i]));
                CHECK(transport_sum(frames[i]) == 0);
                CHECK(get32(frames[i].data() + ip.payload + 4) ==
                      static_cast<uint32_t>(start + i * data));
                CHECK(ip.tcp_flags == (ack | (i == 0 ? tcp_flag::cwr : 0) |
                                       (last ? tcp_flag::fin | tcp_flag::psh : 0)));
                CHECK((v6 || get16(frames[i].data() + ethernet_header + 4) == i));
                append(whole, Bytes(frames[i]).subspan(headers));
            }
            CHECK(whole == frame);
        }
    }
}

TEST_CASE("offload: what is no TCP packet, or has no room for data, is not cut") {
    const Frame frame = segment(false, 1, 3000);
    CHECK(cut(frame, 1448, frame.size() - 3000).empty());
    CHECK(cut(frame, 0, 1434).empty());
    CHECK(cut(udp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, 3000), 1448, 1434)
              .empty());
    Frame fragment = frame, long_header = frame, short_header = frame;
    fragment[ethernet_header + 6] = 0x20;
    CHECK(cut(fragment, 1448, 1434).empty());
    long_header.resize(tcp_of(frame) + 24);
    put16(long_header.data() + ethernet_header + 2, 44);
    CHECK(cut(long_header, 1448, 1434).empty());
    short_header[tcp_of(frame) + 12] = 0x40;
    CHECK(cut(short_header, 1448, 1434).empty());
}

TEST_CASE("offload: what was cut is joined to what it was") {
    for (const bool v6 : {false, true}) {
        const Frame frame = segment(v6, 0xffffff00, 60'000, ack_psh);
        auto joined = join(cut(frame, 1448, 1434));
        REQUIRE(joined.size() == 1);
        const Offload& offload = joined[0].offload;
        CHECK(offload.kind == (v6 ? Offload::tcp_v6 : Offload::tcp_v4));
        CHECK(offload.headers == frame.size() - 60'000);
        CHECK(offload.segment == 1434 - offload.headers);
        CHECK(joined[0].frame != frame); // without the whole checksum
        complete_checksum(joined[0].frame, offload);
        CHECK(joined[0].frame == frame);
    }
}

TEST_CASE("offload: a packet alone comes out as it was") {
    for (const size_t data : {0UL, 1UL, 1400UL}) {
        const Frame frame = segment(false, 5, data, ack_psh);
        const auto joined = join({frame});
        REQUIRE(joined.size() == 1);
        CHECK(joined[0].frame == frame);
        CHECK(joined[0].offload.flags == 0);
        CHECK(joined[0].offload.kind == Offload::uncut);
    }
}

TEST_CASE("offload: packets that a receiver could tell from parts of one are not joined") {
    for (const bool v6 : {false, true}) {
        const auto tcp_byte = [&](size_t at, bool right = true) {
            Frame frame = segment(v6, 1100, 100);
            ++frame[tcp_of(frame) + at];
            if (right) {
                mend(frame);
            }
            return frame;
        };
        const auto ip_byte = [&](size_t at, uint8_t value) {
            Frame frame = segment(v6, 1100, 100);
            frame[at] = value;
            if (!v6) {
                put16(frame.data() + ethernet_header + 10, 0);
                put16(frame.data() + ethernet_header + 10,
                      folded_checksum(sum_words(Bytes(frame).subspan(ethernet_header, 20))));
            }
            mend(frame);
            return frame;
        };
        Frame padded = segment(v6, 1100, 100), wrong_header = segment(false, 1100, 100);
        padded.push_back(0);
        ++wrong_header[ethernet_header + 11];
        const std::vector<Frame> others{
            segment(v6, 1101, 100),
            segment(v6, 1099, 100),
            segment(v6, 1100, 101),
            segment(v6, 1100, 0),
            segment(v6, 1100, 100, ack | tcp_flag::fin),
            segment(v6, 1100, 100, ack | tcp_flag::cwr),
            segment(v6, 1100, 100, 0),
            segment(v6, 1100, 100, ack, {}),
            tcp_byte(1),                                   // a port
            tcp_byte(11),                                  // acknowledged
            tcp_byte(15),                                  // window
            tcp_byte(19),                                  // urgent
            tcp_byte(30),                                  // the time
            tcp_byte(40, false),                           // a wrong checksum
            ip_byte(0, 4),                                 // MAC
            ip_byte(ethernet_header + 1, 0x20),            // traffic class
            ip_byte(ethernet_header + (v6 ? 7 : 8), 3),    // hops
            ip_byte(ethernet_header + (v6 ? 23 : 15), 9),  // source
            v6 ? padded : ip_byte(ethernet_header + 6, 0), // may be fragmented
            v6 ? padded : wrong_header,
            padded,
        };
        const Frame first = segment(v6, 1000, 100);
        CHECK(join({first, segment(v6, 1100, 100)}).size() == 1);
        for (const Frame& other : others) {
            const auto joined = join({first, other});
            REQUIRE(joined.size() == 2);
            CHECK(joined[0].frame == first);
            CHECK(joined[1].frame == other);
        }
        // Nothing behind one that is shorter, or was to be pushed.
        CHECK(join({first, segment(v6, 1100, 99), segment(v6, 1199, 99)}).size() == 2);
        CHECK(join({segment(v6, 1000, 100, ack_psh), segment(v6, 1100, 100)}).size() == 2);
        CHECK(join({first, segment(v6, 1100, 100, ack_psh), segment(v6, 1200, 100)}).size() == 2);
    }
}

TEST_CASE("offload: what is joined is no larger than a packet may be") {
    for (const bool v6 : {false, true}) {
        for (const size_t data : {1UL, 1400UL, 9000UL}) {
            std::vector<Frame> frames;
            for (uint32_t i = 0; i < 200; ++i) {
                frames.push_back(segment(v6, static_cast<uint32_t>(i * data), data));
            }
            size_t whole = 0;
            for (const Out& out : join(frames)) {
                CHECK(parse_frame(out.frame)->ip->end == out.frame.size());
                CHECK(right_header(out.frame));
                whole += out.frame.size() - (frames[0].size() - data);
            }
            CHECK(whole == 200 * data);
        }
    }
}

TEST_CASE("offload: a checksum is completed where it is in the frame") {
    Frame frame = udp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, 33);
    const size_t udp = tcp_of(frame);
    Offload offload;
    offload.flags = Offload::begun;
    offload.sum_from = static_cast<uint16_t>(udp);
    offload.sum_offset = 6;
    frame.back() = 9;
    // Begun with the addresses, protocol and length.
    put16(frame.data() + udp + 6,
          static_cast<uint16_t>(~transport_sum(frame) -
                                ~folded_checksum(sum_words(Bytes(frame).subspan(udp)))));
    complete_checksum(frame, offload);
    CHECK(transport_sum(frame) == 0);

    const Frame before = frame;
    for (const size_t from : {frame.size() - 7, frame.size(), size_t{0xffff}}) {
        offload.sum_from = static_cast<uint16_t>(from);
        complete_checksum(frame, offload);
        CHECK(frame == before);
    }
    Frame ones(8, 0xff);
    offload.sum_from = 0;
    complete_checksum(ones, offload);
    CHECK(get16(ones.data() + 6) == 0xffff);
}
