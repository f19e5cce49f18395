// SPDX-License-Identifier: GPL-2.0-or-later
// What of DHCP and of router discovery crosses for the old addresses.
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/flow_table.h"
#include "tunnel/core/rules.h"

#include <algorithm>

#include <doctest/doctest.h>

using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

struct Message {
    uint8_t operation = 1, type = 3;
    Mac client = vm_mac;
    const char* client_ip = "0.0.0.0";
    const char* your_ip = "0.0.0.0";
    const char* requested = nullptr;
    uint8_t hardware = 1;

    Frame payload() const {
        Frame bytes(236);
        bytes[0] = operation;
        bytes[1] = hardware;
        bytes[2] = 6;
        put32(bytes.data() + 4, 0x12345678);
        std::copy_n(parse_ip(client_ip)->bytes.begin(), 4, bytes.begin() + 12);
        std::copy_n(parse_ip(your_ip)->bytes.begin(), 4, bytes.begin() + 16);
        std::copy_n(client.bytes.begin(), 6, bytes.begin() + 28);
        append(bytes, std::array<uint8_t, 8>{0x63, 0x82, 0x53, 0x63, 53, 1, type, 0});
        if (requested != nullptr) {
            append(bytes, std::array<uint8_t, 2>{50, 4});
            append(bytes, parse_ip(requested)->span());
        }
        bytes.push_back(255);
        return bytes;
    }
    Frame frame(const Mac& to, const Mac& from, const char* source, const char* destination) const {
        const Frame data = payload();
        const bool client_speaks = operation == 1;
        Frame udp(8);
        put16(udp.data(), client_speaks ? 68 : 67);
        put16(udp.data() + 2, client_speaks ? 67 : 68);
        put16(udp.data() + 4, static_cast<uint16_t>(8 + data.size()));
        append(udp, data);
        return ip_frame(to, from, source, destination, ip_udp, udp);
    }
};

const AddressFilter filter(vm_nic());

bool asks(const Message& message,
          const char* source = "10.1.0.10",
          const char* destination = "255.255.255.255") {
    const Frame frame = message.frame(Mac::broadcast(), vm_mac, source, destination);
    return filter.from_vm(*parse_frame(frame));
}

bool is_told(Message message,
             const char* destination = "255.255.255.255",
             const Mac& to = Mac::broadcast()) {
    message.operation = 2;
    const Frame frame = message.frame(to, gateway_mac, "10.1.0.1", destination);
    return filter.to_vm(*parse_frame(frame));
}

Message renewal() {
    Message message;
    message.client_ip = "10.1.0.10";
    return message;
}

} // namespace

TEST_CASE(
    "dhcp: renewals and rebinds of an old address go home, and nothing else that is for all") {
    CHECK(filter.from_vm(
        *parse_frame(renewal().frame(gateway_mac, vm_mac, "10.1.0.10", "10.1.0.1"))));
    CHECK(asks(renewal()));
    CHECK(asks(renewal(), "0.0.0.0"));
    Message again; // after a restart of the client
    again.requested = "10.1.0.10";
    CHECK(asks(again, "0.0.0.0"));
    again.requested = "10.2.0.77"; // what this site has offered
    CHECK_FALSE(asks(again, "0.0.0.0"));
    Message message = renewal();
    for (const uint8_t type : {4, 7, 8}) {
        message.type = type;
        CHECK(asks(message));
    }
    for (const uint8_t type : {0, 1, 2, 5, 6, 9}) {
        message.type = type;
        CHECK_FALSE(asks(message));
    }
    message = renewal();
    message.client = gateway_mac;
    CHECK_FALSE(asks(message));
    message = renewal();
    message.hardware = 6;
    CHECK_FALSE(asks(message));
    CHECK_FALSE(asks(renewal(), "10.2.0.77"));
    CHECK_FALSE(asks(renewal(), "10.1.0.10", "10.1.0.255"));
    CHECK_FALSE(filter.from_vm(*parse_frame(
        udp_frame(Mac::broadcast(), vm_mac, "10.1.0.10", 68, "255.255.255.255", 67, 300))));
    CHECK_FALSE(filter.from_vm(*parse_frame(
        udp_frame(Mac::broadcast(), vm_mac, "10.1.0.10", 5353, "255.255.255.255", 5353, 300))));
}

TEST_CASE("dhcp: only answers to the VM about its old addresses come to it") {
    Message message;
    message.type = 5;
    message.your_ip = "10.1.0.10";
    CHECK(is_told(message));
    CHECK(is_told(message, "10.1.0.10", vm_mac));
    message.your_ip = "10.1.0.11";
    CHECK_FALSE(is_told(message));
    message.your_ip = "10.1.0.10";
    message.client = *parse_mac("02:00:00:00:00:77");
    CHECK_FALSE(is_told(message));
    message = {};
    message.type = 6; // a NAK has no address
    CHECK(is_told(message));
    message.client = gateway_mac;
    CHECK_FALSE(is_told(message));
    message = renewal();
    const Frame from_client =
        message.frame(Mac::broadcast(), gateway_mac, "10.1.0.20", "255.255.255.255");
    CHECK_FALSE(filter.to_vm(*parse_frame(from_client)));
}

TEST_CASE("dhcp: a message that is cut off, or whose options run over its end, is none") {
    Message message = renewal();
    message.requested = "10.1.0.10";
    const Frame whole = message.payload();
    REQUIRE(parse_dhcp(whole));
    CHECK(parse_dhcp(whole)->requested == *parse_ip("10.1.0.10"));
    for (size_t size = 0; size < 240; ++size) {
        CHECK_FALSE(parse_dhcp(Bytes(whole).first(size)));
    }
    CHECK(parse_dhcp(Bytes(whole).first(240))->type == DhcpMessage::none);
    CHECK_FALSE(parse_dhcp(Bytes(whole).first(241))); // an option without its length
    CHECK_FALSE(parse_dhcp(Bytes(whole).first(242)));
    CHECK_FALSE(parse_dhcp(Bytes(whole).first(whole.size() - 2)));
    Frame longer = whole;
    longer[241] = 200;
    CHECK_FALSE(parse_dhcp(longer));
    longer = whole;
    longer[236] ^= 1; // the cookie
    CHECK_FALSE(parse_dhcp(longer));
    // UDP says that it is longer than its packet.
    Frame frame = message.frame(Mac::broadcast(), vm_mac, "10.1.0.10", "255.255.255.255");
    put16(frame.data() + 14 + 20 + 4, 1000);
    CHECK_FALSE(parse_frame(frame)->ip->dhcp);
    put16(frame.data() + 14 + 20 + 4, 7);
    CHECK_FALSE(parse_frame(frame)->ip->dhcp);
}

TEST_CASE("dhcp: renewing is no flow that keeps a tunnel") {
    FlowTable flows{FlowLimits{}};
    const Frame out = renewal().frame(gateway_mac, vm_mac, "10.1.0.10", "10.1.0.1");
    Message answer;
    answer.operation = 2;
    answer.type = 5;
    answer.your_ip = "10.1.0.10";
    const Frame in = answer.frame(vm_mac, gateway_mac, "10.1.0.1", "10.1.0.10");
    flows.seen(*parse_frame(out), true, out.size(), 1);
    flows.seen(*parse_frame(in), false, in.size(), 2);
    CHECK(flows.live() == 0);
}

TEST_CASE("router discovery: the VM asks its old routers, if it has IPv6 there") {
    const auto solicit = [](const Nic& nic, const char* source) {
        const Frame frame = ip_frame(*parse_mac("33:33:00:00:00:02"),
                                     vm_mac,
                                     source,
                                     "ff02::2",
                                     ip_icmpv6,
                                     {133, 0, 0, 0, 0, 0, 0, 0});
        return AddressFilter(nic).from_vm(*parse_frame(frame));
    };
    CHECK(solicit(vm_nic(), "fe80::ff:fe00:10"));
    CHECK(solicit(vm_nic(), "::"));
    CHECK_FALSE(solicit(vm_nic(), "fe80::1"));
    Nic only_v4 = vm_nic();
    only_v4.addresses.pop_back();
    CHECK_FALSE(solicit(only_v4, "fe80::ff:fe00:10"));
    const std::string rules = away_rules("t", "tap0", "drt0", only_v4);
    CHECK(rules.find("nd-router") == std::string::npos);
    CHECK(rules.find("@offered") != std::string::npos);
    CHECK(away_rules("t", "tap0", "drt0", vm_nic()).find("nd-router-advert counter drop") !=
          std::string::npos);
}
