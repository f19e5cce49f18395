// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/tcp_rewrite.h"

#include <doctest/doctest.h>

using namespace drover::tunnel;
using namespace drover::tunnel::test;

TEST_CASE("addresses are read strictly and written as they are usual") {
    CHECK(to_text(*parse_mac("02:00:00:00:0A:10")) == "02:00:00:00:0a:10");
    for (const char* text : {"",
                             "02:00:00:00:00",
                             "02-00-00-00-00-10",
                             "02:00:00:00:00:1g",
                             "+2:00:00:00:00:10",
                             "02:00:00:00:00:10:"}) {
        CHECK_MESSAGE(!parse_mac(text), text);
    }
    CHECK(to_text(*parse_ip("10.1.0.10")) == "10.1.0.10");
    CHECK(to_text(*parse_ip("2001:DB8::1")) == "2001:db8::1");
    for (const char* text : {"", "10.1.0", "10.1.0.10/24", "fe80::1%eth0", "x"}) {
        CHECK_MESSAGE(!parse_ip(text), text);
    }
    CHECK(to_text(*parse_prefix("10.1.0.10/24")) == "10.1.0.10/24");
    for (const char* text :
         {"10.1.0.10", "10.1.0.10/", "10.1.0.10/33", "::/129", "10.1.0.10/-1", "10.1.0.10/2x"}) {
        CHECK_MESSAGE(!parse_prefix(text), text);
    }
}

TEST_CASE("a prefix covers its network and nothing beside it") {
    const Prefix odd = *parse_prefix("10.1.0.10/25");
    CHECK(odd.covers(*parse_ip("10.1.0.127")));
    CHECK_FALSE(odd.covers(*parse_ip("10.1.0.128")));
    CHECK_FALSE(odd.covers(*parse_ip("::1")));
    CHECK(parse_prefix("10.1.0.10/0")->covers(*parse_ip("255.0.0.1")));
    CHECK(parse_prefix("10.1.0.10/32")->covers(*parse_ip("10.1.0.10")));
    CHECK_FALSE(parse_prefix("10.1.0.10/32")->covers(*parse_ip("10.1.0.11")));
    CHECK(parse_prefix("::1/128")->covers(*parse_ip("::1")));
}

TEST_CASE("TCP over IPv4 and IPv6") {
    for (const bool v6 : {false, true}) {
        const Frame frame = tcp_frame(vm_mac,
                                      gateway_mac,
                                      v6 ? "2001:db8:9::2" : "10.9.0.2",
                                      40000,
                                      v6 ? "2001:db8:1::10" : "10.1.0.10",
                                      80,
                                      tcp_flag::syn,
                                      {},
                                      3);
        const Parsed parsed = *parse_frame(frame);
        CHECK(parsed.destination == vm_mac);
        REQUIRE(parsed.ip);
        CHECK(parsed.ip->has_ports);
        CHECK(parsed.ip->source_port == 40000);
        CHECK(parsed.ip->destination_port == 80);
        CHECK(parsed.ip->tcp_flags == tcp_flag::syn);
        CHECK(parsed.ip->end == frame.size());
        CHECK(transport_sum(frame) == 0);
    }
}

TEST_CASE("padding is no part of a packet, and a packet is not longer than its frame") {
    Frame frame = udp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 2);
    const size_t size = frame.size();
    frame.resize(60);
    CHECK(parse_frame(frame)->ip->end == size);
    frame.resize(size - 1);
    CHECK_FALSE(parse_frame(frame)->ip);
    CHECK_FALSE(parse_frame(Bytes(frame).first(13)));
}

TEST_CASE("later fragments have no ports; IPv6 extension headers are gone through") {
    Frame frame = udp_frame(vm_mac, gateway_mac, "10.9.0.2", 7, "10.1.0.10", 9);
    put16(frame.data() + ethernet_header + 6, 0x2000); // the first one of more
    CHECK(parse_frame(frame)->ip->has_ports);
    CHECK(parse_frame(frame)->ip->fragment);
    put16(frame.data() + ethernet_header + 6, 0x0001);
    CHECK_FALSE(parse_frame(frame)->ip->has_ports);
    CHECK(parse_frame(frame)->ip->later_fragment);

    Frame payload{44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}; // hop by hop, 16 bytes
    append(payload, Frame{ip_udp, 0, 0, 1, 0, 0, 0, 9});            // fragment at 0
    append(payload, Frame{0, 7, 0, 9, 0, 8, 0, 0});
    const Frame v6 = ip_frame(vm_mac, gateway_mac, "2001:db8:9::2", "2001:db8:1::10", 0, payload);
    REQUIRE(parse_frame(v6)->ip);
    CHECK(parse_frame(v6)->ip->destination_port == 9);
    CHECK(parse_frame(v6)->ip->fragment);
    // An extension header that is said to go on behind the packet.
    Frame long_one = v6;
    long_one[ethernet_header + 41] = 200;
    CHECK_FALSE(parse_frame(long_one)->ip);
}

TEST_CASE("the MSS of a SYN is lowered, with a right checksum, also at an odd place") {
    const Frame even{2, 4, 0x05, 0xb4}, odd{1, 2, 4, 0x05, 0xb4, 0, 0, 0};
    for (const Frame& options : {even, odd}) {
        for (const bool v6 : {false, true}) {
            Frame frame = tcp_frame(vm_mac,
                                    gateway_mac,
                                    v6 ? "2001:db8:9::2" : "10.9.0.2",
                                    4,
                                    v6 ? "2001:db8:1::10" : "10.1.0.10",
                                    80,
                                    tcp_flag::syn,
                                    options);
            const Frame before = frame;
            const Parsed parsed = *parse_frame(frame);
            CHECK_FALSE(clamp_mss(frame, parsed, v6 ? 1520 : 1500)); // 1460 fits
            CHECK(frame == before);
            CHECK(clamp_mss(frame, parsed, 1420));
            CHECK(transport_sum(frame) == 0);
            const size_t at = parsed.ip->payload + 20 + (options == even ? 2 : 3);
            CHECK(get16(frame.data() + at) == 1420 - (v6 ? 60 : 40));
        }
    }
}

TEST_CASE("what is no SYN with an MSS is left as it is") {
    const Frame mss{2, 4, 0x05, 0xb4};
    const Frame frames[] = {
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, tcp_flag::ack, mss),
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, tcp_flag::syn),
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, tcp_flag::syn, {0, 2, 4, 5}),
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, tcp_flag::syn, {3, 0, 2, 4}),
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, tcp_flag::syn, {1, 1, 2, 4}),
        udp_frame(vm_mac, gateway_mac, "10.9.0.2", 4, "10.1.0.10", 80, 40),
    };
    for (const Frame& frame : frames) {
        Frame copy = frame;
        CHECK_FALSE(clamp_mss(copy, *parse_frame(copy), 600));
        CHECK(copy == frame);
    }
}
