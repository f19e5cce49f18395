// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/responder.h"
#include "tunnel/core/rules.h"

#include <doctest/doctest.h>

using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

const AddressFilter filter(vm_nic());
bool from_vm(const Frame& frame) {
    return filter.from_vm(*parse_frame(frame));
}
bool to_vm(const Frame& frame) {
    return filter.to_vm(*parse_frame(frame));
}
const Mac other_mac = *parse_mac("02:00:00:00:00:77");
const Mac all_nodes = *parse_mac("33:33:00:00:00:01");

} // namespace

TEST_CASE("packets of the old addresses pass, others do not") {
    CHECK(to_vm(udp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 2)));
    CHECK(to_vm(udp_frame(vm_mac, gateway_mac, "2001:db8:9::2", 1, "2001:db8:1::10", 2)));
    CHECK(from_vm(udp_frame(gateway_mac, vm_mac, "10.1.0.10", 1, "10.9.0.2", 2)));
    CHECK(from_vm(udp_frame(gateway_mac, vm_mac, "2001:db8:1::10", 1, "2001:db8:9::2", 2)));

    CHECK_FALSE(to_vm(udp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.11", 2)));
    CHECK_FALSE(to_vm(udp_frame(other_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 2)));
    CHECK_FALSE(to_vm(udp_frame(vm_mac, vm_mac, "10.9.0.2", 1, "10.1.0.10", 2)));
    CHECK_FALSE(to_vm(udp_frame(Mac::broadcast(), gateway_mac, "10.9.0.2", 1, "10.1.0.255", 2)));
    CHECK_FALSE(to_vm(udp_frame(vm_mac, gateway_mac, "10.1.0.10", 1, "10.1.0.10", 2)));
    CHECK_FALSE(from_vm(udp_frame(gateway_mac, vm_mac, "10.1.0.11", 1, "10.9.0.2", 2)));
    CHECK_FALSE(from_vm(udp_frame(gateway_mac, other_mac, "10.1.0.10", 1, "10.9.0.2", 2)));
    CHECK_FALSE(from_vm(ethernet(gateway_mac, vm_mac, 0x88cc)));
    CHECK_FALSE(from_vm(udp_frame(
        *parse_mac("01:00:5e:00:00:fb"), vm_mac, "10.1.0.10", 5353, "224.0.0.251", 5353)));
    CHECK_FALSE(from_vm(udp_frame(Mac::broadcast(), vm_mac, "10.1.0.10", 68, "10.1.0.255", 67)));
    CHECK_FALSE(to_vm(ethernet(vm_mac, gateway_mac, 0x88cc)));
}

TEST_CASE("ARP: the VM asks and answers for its own addresses only") {
    CHECK(from_vm(arp_frame(Mac::broadcast(), 1, vm_mac, "10.1.0.10", {}, "10.1.0.1")));
    CHECK(from_vm(arp_frame(gateway_mac, 2, vm_mac, "10.1.0.10", gateway_mac, "10.1.0.1")));
    CHECK(from_vm(arp_frame(Mac::broadcast(), 1, vm_mac, "0.0.0.0", {}, "10.1.0.10")));
    CHECK_FALSE(from_vm(arp_frame(gateway_mac, 2, vm_mac, "10.1.0.1", gateway_mac, "10.1.0.20")));
    CHECK_FALSE(from_vm(arp_frame(Mac::broadcast(), 1, vm_mac, "0.0.0.0", {}, "10.1.0.1")));
    Frame other_sender = arp_frame(gateway_mac, 2, vm_mac, "10.1.0.10", gateway_mac, "10.1.0.1");
    other_sender[ethernet_header + 13] ^= 1; // the sender's MAC within
    CHECK_FALSE(from_vm(other_sender));

    CHECK(to_vm(arp_frame(vm_mac, 2, gateway_mac, "10.1.0.1", vm_mac, "10.1.0.10")));
    CHECK(to_vm(arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.1")));
    CHECK_FALSE(to_vm(arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.20")));
    CHECK_FALSE(to_vm(arp_frame(Mac::broadcast(), 1, gateway_mac, "10.2.0.1", {}, "10.2.0.1")));
    CHECK_FALSE(to_vm(arp_frame(vm_mac, 2, gateway_mac, "10.1.0.10", vm_mac, "10.1.0.10")));
}

TEST_CASE("neighbour discovery: own addresses, old neighbours and named gateways") {
    const auto nd = [](bool vm, uint8_t type, const char* from, const char* target) {
        return vm ? nd_frame(gateway_mac, vm_mac, type, from, "fe80::1", target)
                  : nd_frame(all_nodes, gateway_mac, type, from, "ff02::1", target);
    };
    CHECK(from_vm(nd(true, nd_solicit, "fe80::ff:fe00:10", "fe80::1"))); // made from its MAC
    CHECK(from_vm(nd(true, nd_solicit, "2001:db8:1::10", "2001:db8:1::20")));
    CHECK(from_vm(nd(true, nd_solicit, "::", "2001:db8:1::10")));
    CHECK(from_vm(nd(true, nd_advert, "2001:db8:1::10", "2001:db8:1::10")));
    CHECK_FALSE(from_vm(nd(true, nd_advert, "2001:db8:1::10", "fe80::1")));
    CHECK_FALSE(from_vm(nd(true, nd_advert, "2001:db8:1::10", "2001:db8:1::20")));
    CHECK_FALSE(from_vm(nd(true, nd_solicit, "fe80::ff:fe00:10", "fe80::2")));
    CHECK_FALSE(from_vm(nd(true, nd_solicit, "fe80::77", "fe80::1"))); // another host's, perhaps
    CHECK_FALSE(from_vm(nd(true, nd_advert, "fe80::77", "2001:db8:1::10")));
    Nic named = vm_nic();
    named.link_locals = {*parse_ip("fe80::77")};
    CHECK(identity_of(named) != identity_of(vm_nic()));
    CHECK(AddressFilter(named).from_vm(*parse_frame(nd(true, nd_solicit, "fe80::77", "fe80::1"))));
    CHECK_FALSE(from_vm(nd(true, nd_solicit, "fe80::1", "2001:db8:1::20"))); // as the gateway
    CHECK_FALSE(from_vm(nd(true, nd_solicit, "2001:db8:5::10", "2001:db8:1::20")));
    CHECK_FALSE(from_vm(nd(true, nd_router_advert, "2001:db8:1::10", "::")));
    CHECK_FALSE(from_vm(nd(true, 137, "2001:db8:1::10", "2001:db8:1::20")));

    CHECK(to_vm(nd(false, nd_solicit, "fe80::1", "2001:db8:1::10")));
    CHECK(to_vm(nd(false, nd_advert, "fe80::1", "fe80::1")));
    CHECK(to_vm(nd(false, nd_advert, "2001:db8:1::20", "2001:db8:1::20")));
    CHECK(to_vm(nd(false, nd_router_advert, "fe80::1", "::")));
    CHECK(to_vm(nd(false, nd_solicit, "::", "2001:db8:1::10")));
    CHECK_FALSE(to_vm(nd(false, nd_solicit, "fe80::2", "2001:db8:1::10")));
    CHECK_FALSE(to_vm(nd(false, nd_router_advert, "fe80::2", "::")));
    CHECK_FALSE(to_vm(nd(false, nd_advert, "fe80::1", "2001:db8:1::10")));
    CHECK_FALSE(to_vm(nd(false, nd_solicit, "fe80::1", "2001:db8:1::20")));
}

TEST_CASE("neighbour discovery does not pass behind more headers than are looked through") {
    const auto behind = [](size_t headers) {
        Frame payload;
        for (size_t i = 0; i < headers; ++i) {
            append(payload, std::array<uint8_t, 8>{uint8_t(i + 1 < headers ? 60 : ip_udp)});
        }
        payload.resize(payload.size() + 8);
        const Frame frame =
            ip_frame(gateway_mac, vm_mac, "2001:db8:1::10", "2001:db8:9::2", 60, payload);
        const auto parsed = parse_frame(frame);
        return parsed && filter.from_vm(*parsed);
    };
    CHECK(behind(1));
    CHECK(behind(8));
    CHECK_FALSE(behind(9));
    CHECK_FALSE(behind(20));
}

TEST_CASE("questions for the VM are answered with its own MAC") {
    const Frame request = arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.10");
    const auto answer = answer_for(vm_nic(), *parse_frame(request));
    REQUIRE(answer);
    CHECK(*answer == arp_frame(gateway_mac, 2, vm_mac, "10.1.0.10", gateway_mac, "10.1.0.1"));

    const Frame solicit = nd_frame(*parse_mac("33:33:ff:00:00:10"),
                                   gateway_mac,
                                   nd_solicit,
                                   "fe80::1",
                                   "ff02::1:ff00:10",
                                   "2001:db8:1::10");
    const auto advert = answer_for(vm_nic(), *parse_frame(solicit));
    REQUIRE(advert);
    const Parsed parsed = *parse_frame(*advert);
    CHECK(parsed.destination == gateway_mac);
    CHECK(parsed.source == vm_mac);
    CHECK(parsed.ip->icmp_type == nd_advert);
    CHECK(parsed.ip->nd_target == parse_ip("2001:db8:1::10"));
    CHECK(to_text(parsed.ip->destination) == "fe80::1");
    CHECK(transport_sum(*advert) == 0);

    // Who looks whether the address is free hears that it is not.
    const Frame probe = nd_frame(*parse_mac("33:33:ff:00:00:10"),
                                 other_mac,
                                 nd_solicit,
                                 "::",
                                 "ff02::1:ff00:10",
                                 "2001:db8:1::10");
    CHECK(to_text(parse_frame(*answer_for(vm_nic(), *parse_frame(probe)))->ip->destination) ==
          "ff02::1");
}

TEST_CASE("nothing else is answered") {
    for (const Frame& frame : {
             arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.11"),
             arp_frame(vm_mac, 2, gateway_mac, "10.1.0.1", vm_mac, "10.1.0.10"),
             arp_frame(Mac::broadcast(), 1, vm_mac, "10.1.0.10", {}, "10.1.0.10"),
             nd_frame(all_nodes, gateway_mac, nd_advert, "fe80::1", "ff02::1", "2001:db8:1::10"),
             nd_frame(all_nodes, gateway_mac, nd_solicit, "fe80::1", "ff02::1", "2001:db8:1::11"),
             udp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 2),
         }) {
        CHECK_FALSE(answer_for(vm_nic(), *parse_frame(frame)));
    }
}

TEST_CASE("what is announced is what the VM may say") {
    const auto frames = announcements(vm_nic());
    CHECK(frames.size() == 2);
    for (const Frame& frame : frames) {
        CHECK(from_vm(frame));
        CHECK(parse_frame(frame)->destination.is_group());
    }
}

TEST_CASE("the identity is that of the NIC, whatever the order") {
    Nic turned = vm_nic();
    std::swap(turned.addresses[0], turned.addresses[1]);
    CHECK(identity_of(turned) == identity_of(vm_nic()));
    turned.addresses[0].length = 56;
    CHECK(identity_of(turned) != identity_of(vm_nic()));
    turned = vm_nic();
    turned.gateways.clear();
    CHECK(identity_of(turned) != identity_of(vm_nic()));
}

TEST_CASE("the rules name the port, the device and the networks, in one transaction") {
    const std::string rules = away_rules(table_name("vm"), "tap0", "drt0", vm_nic());
    CHECK(rules.starts_with(remove_rules(table_name("vm"))));
    CHECK(rules.find("arp saddr ip { 10.1.0.0/24 } counter drop") != std::string::npos);
    CHECK(rules.find("ip6 saddr { 2001:db8:1::10 } counter fwd to \"drt0\"") != std::string::npos);
    CHECK(rules.find("@th,64,64 0x20010db800010000") != std::string::npos);
    CHECK(rules.find("@th,64,128 0xfe800000000000000000000000000001") != std::string::npos);
    CHECK(table_name("vm") != table_name("vm2"));

    Nic odd = vm_nic();
    odd.addresses = {*parse_prefix("2001:db8:1:2345::10/52")};
    CHECK(away_rules(table_name("vm"), "tap0", "drt0", odd)
              .find("@th,64,56 & 0xfffffffffffff0 == 0x20010db8000120 ") != std::string::npos);
    CHECK(mac_in_identity(identity_of(odd)) == vm_mac);
    CHECK_FALSE(mac_in_identity("mac"));
}
