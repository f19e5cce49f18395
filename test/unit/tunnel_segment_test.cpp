// SPDX-License-Identifier: GPL-2.0-or-later
// Whether two bridges are one segment, and what is announced there.
#include "migrator/segment.h"
#include "test/unit/tunnel_frames.h"

#include <algorithm>

#include <doctest/doctest.h>

using namespace drover;
using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

Nonce nonce_of(uint8_t first) {
    Nonce nonce{};
    for (size_t i = 0; i < nonce.size(); ++i) {
        nonce[i] = static_cast<uint8_t>(first + i);
    }
    return nonce;
}

NicSpec nic_spec(const char* mac) {
    NicSpec nic;
    nic.mac = mac;
    nic.bridge = "br0";
    nic.addresses = {"10.1.0.10/24"};
    return nic;
}

} // namespace

TEST_CASE("segment: a question is for each address, from nobody, and has the nonce") {
    const auto frames = probes(vm_nic(), nonce_of(7));
    REQUIRE(frames.size() == 2);
    const Parsed arp = *parse_frame(frames[0]), solicit = *parse_frame(frames[1]);
    CHECK(arp.source == *parse_mac("02:07:08:09:0a:0b"));
    CHECK(arp.destination == Mac::broadcast());
    REQUIRE(arp.arp);
    CHECK(arp.arp->operation == 1);
    CHECK(arp.arp->sender.is_unspecified());
    CHECK(arp.arp->sender_mac == arp.source);
    CHECK(to_text(arp.arp->target) == "10.1.0.10");
    CHECK(frames[0].size() == 60);
    REQUIRE(solicit.ip);
    CHECK(to_text(solicit.destination) == "33:33:ff:00:00:10");
    CHECK(to_text(solicit.ip->destination) == "ff02::1:ff00:10");
    CHECK(solicit.ip->source == Ip{6, {}});
    CHECK(solicit.ip->nd_target == *parse_ip("2001:db8:1::10"));
    CHECK(transport_sum(frames[1]) == 0);
    for (const Frame& frame : frames) {
        CHECK(carries(frame, nonce_of(7)));
        CHECK_FALSE(carries(frame, nonce_of(8)));
        CHECK_FALSE(carries(Bytes(frame).first(14), nonce_of(7)));
        CHECK_FALSE(is_answer(vm_nic(), *parse_frame(frame)));
    }
    CHECK_FALSE(carries({}, nonce_of(7)));
}

TEST_CASE("segment: only the VM's MAC answers, for one of its addresses") {
    const Mac asker = *parse_mac("02:07:08:09:0a:0b"), other = *parse_mac("02:00:00:00:00:77");
    const auto arp = [&](uint8_t operation, const Mac& from, const char* sender) {
        const Frame frame = test::arp_frame(asker, operation, from, sender, asker, "0.0.0.0");
        return is_answer(vm_nic(), *parse_frame(frame));
    };
    CHECK(arp(2, vm_mac, "10.1.0.10"));
    CHECK_FALSE(arp(1, vm_mac, "10.1.0.10"));
    CHECK_FALSE(arp(2, vm_mac, "10.1.0.11"));
    CHECK_FALSE(arp(2, other, "10.1.0.10")); // proxy ARP
    const auto nd = [&](uint8_t type, const Mac& from, const char* target) {
        const Frame frame =
            nd_frame(*parse_mac("33:33:00:00:00:01"), from, type, target, "ff02::1", target);
        return is_answer(vm_nic(), *parse_frame(frame));
    };
    CHECK(nd(136, vm_mac, "2001:db8:1::10"));
    CHECK_FALSE(nd(135, vm_mac, "2001:db8:1::10"));
    CHECK_FALSE(nd(136, vm_mac, "2001:db8:1::11"));
    CHECK_FALSE(nd(136, other, "2001:db8:1::10"));
    Frame forged = test::arp_frame(asker, 2, other, "10.1.0.10", asker, "0.0.0.0");
    std::copy(vm_mac.bytes.begin(), vm_mac.bytes.end(), forged.begin() + 6);
    CHECK_FALSE(is_answer(vm_nic(), *parse_frame(forged)));
}

TEST_CASE("segment: both directions together show that it is one") {
    CHECK(judge_segment(true, true) == Segment::same);
    CHECK(judge_segment(false, false) == Segment::other);
    CHECK(judge_segment(true, false) == Segment::unclear);
    CHECK(judge_segment(false, true) == Segment::unclear);

    const std::vector<NicSpec> two{nic_spec("02:00:00:00:00:10"), nic_spec("02:00:00:00:00:11")};
    CHECK(choose_network(two, {{true, true}, {true, true}}).stretched);
    CHECK_FALSE(choose_network(two, {{false, false}, {false, false}}).stretched);
    CHECK_THROWS_WITH_AS(
        choose_network(two, {{true, true}, {true, false}}),
        doctest::Contains("NIC 02:00:00:00:00:11: both sites are one segment, but"),
        Error);
    CHECK_THROWS_WITH_AS(choose_network(two, {{false, true}, {true, true}}),
                         doctest::Contains("there is another one of it"),
                         Error);
    CHECK_THROWS_WITH_AS(choose_network(two, {{true, false}, {true, false}}),
                         doctest::Contains("1 of 2 NICs"),
                         Error);
}

TEST_CASE("segment: a nonce is 14 bytes") {
    CHECK(parse_nonce(to_text(nonce_of(200))) == nonce_of(200));
    CHECK_FALSE(parse_nonce(""));
    CHECK_FALSE(parse_nonce("0102030405060708090a0b0c0d"));
    CHECK_FALSE(parse_nonce("0102030405060708090a0b0c0d0e0f"));
    CHECK_FALSE(parse_nonce("0102030405060708090a0b0c0d0x"));
}

TEST_CASE("segment: ARP, neighbour discovery and RARP say where the VM is, less and less often") {
    const auto frames = moved_announcements(vm_nic());
    REQUIRE(frames.size() == 3);
    for (const Frame& frame : frames) {
        CHECK(parse_frame(frame)->source == vm_mac);
        CHECK(parse_frame(frame)->destination.is_group());
    }
    // RFC 903: request reverse, sender and target are the VM's MAC.
    Frame rarp = ethernet(Mac::broadcast(), vm_mac, 0x8035);
    append(rarp, std::array<uint8_t, 8>{0, 1, 8, 0, 6, 4, 0, 3});
    for (int i = 0; i < 2; ++i) {
        append(rarp, vm_mac.bytes);
        append(rarp, std::array<uint8_t, 4>{});
    }
    CHECK(frames[2] == rarp);

    uint64_t sum = 0, last = 0;
    unsigned sent = 1;
    for (; announce_again_ms(sent); ++sent) {
        CHECK(*announce_again_ms(sent) >= last);
        last = *announce_again_ms(sent);
        sum += last;
    }
    CHECK(announce_again_ms(1) == 100);
    CHECK(sent == 10);
    CHECK(sum == 51'100);
    CHECK_FALSE(announce_again_ms(1000));
}
