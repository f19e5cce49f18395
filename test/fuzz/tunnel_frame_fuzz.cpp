// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as a frame at either end of the tunnel, from either side. What passes the filter is
// about the VM's addresses; what is changed or made has a right checksum where it had one, and so
// has TCP that is cut and joined.
#include "test/fuzz/check.h"
#include "tunnel/core/flow_table.h"
#include "tunnel/core/offload.h"
#include "tunnel/core/responder.h"
#include "tunnel/core/segment.h"
#include "tunnel/core/tcp_rewrite.h"

using namespace drover::tunnel;

namespace {

const Nic nic{*parse_mac("02:00:00:00:00:10"),
              {*parse_prefix("10.1.0.10/24"), *parse_prefix("2001:db8:1::10/64")},
              {*parse_ip("fe80::1")}};

uint16_t transport_sum(const Frame& frame, const IpPacket& ip) {
    const Bytes payload = Bytes(frame).subspan(ip.payload, ip.end - ip.payload);
    const uint32_t pseudo = sum_words(ip.destination.span(), sum_words(ip.source.span())) +
                            static_cast<uint32_t>(payload.size()) + ip.protocol;
    return folded_checksum(sum_words(payload, pseudo));
}

void cut_and_join(const Frame& frame, const Parsed& parsed) {
    constexpr size_t most = 600;
    TcpCutter cutter;
    TcpJoiner joiner;
    std::vector<Frame> joined;
    size_t packets = 0;
    const auto out = [&](Bytes bytes, const Offload& offload) {
        FUZZ_CHECK(offload.kind == Offload::uncut || offload.segment > 0);
        joined.emplace_back(bytes.begin(), bytes.end());
        complete_checksum(joined.back(), offload);
    };
    cutter.cut(frame, parsed, 100, most, [&](Bytes bytes) {
        const auto part = parse_frame(bytes);
        FUZZ_CHECK(bytes.size() <= most && part->ip && part->ip->end == bytes.size());
        FUZZ_CHECK(transport_sum(Frame(bytes.begin(), bytes.end()), *part->ip) == 0);
        FUZZ_CHECK(part->ip->payload == parsed.ip->payload);
        joiner.add(bytes, *part, out);
        ++packets;
    });
    joiner.flush(out);
    for (const Frame& each : joined) {
        const auto part = parse_frame(each);
        FUZZ_CHECK(part->ip && transport_sum(each, *part->ip) == 0);
    }
    FUZZ_CHECK(joined.size() <= packets);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const AddressFilter filter(nic);
    static FlowTable flows([] {
        FlowLimits limits;
        limits.flows = 100;
        return limits;
    }());
    static uint64_t now = 0;
    Frame frame(data, data + size);
    const auto parsed = parse_frame(frame);
    FUZZ_CHECK(parsed.has_value() == (size >= ethernet_header));
    if (!parsed) {
        return 0;
    }
    const bool from_vm = filter.from_vm(*parsed), to_vm = filter.to_vm(*parsed);
    FUZZ_CHECK(!(from_vm && to_vm));
    if (from_vm) {
        FUZZ_CHECK(parsed->source == nic.mac);
    }
    if (parsed->ip) {
        const IpPacket& ip = *parsed->ip;
        FUZZ_CHECK(ip.payload <= ip.end && ip.end <= size);
        FUZZ_CHECK(!to_vm || !nic.has_address(ip.source));
        FUZZ_CHECK(!ip.dhcp || (ip.protocol == ip_udp && !ip.fragment));
        FUZZ_CHECK(!parsed->destination.is_group() || !ip.dhcp || !(from_vm || to_vm) ||
                   ip.dhcp->client == nic.mac);
        cut_and_join(frame, *parsed);
        Frame completed = frame;
        const auto word = static_cast<uint16_t>(size > 1 ? get16(data) : 0);
        complete_checksum(completed, {Offload::begun, Offload::uncut, 0, 0, word, data[0]});
        FUZZ_CHECK(completed.size() == size);
        const bool right = transport_sum(frame, ip) == 0;
        if (clamp_mss(frame, *parsed, 600)) {
            FUZZ_CHECK(frame.size() == size);
            FUZZ_CHECK(!right || transport_sum(frame, ip) == 0);
            FUZZ_CHECK(!clamp_mss(frame, *parse_frame(frame), 600));
        }
    }
    if (from_vm || to_vm) {
        flows.seen(*parsed, from_vm, size, ++now);
        FUZZ_CHECK(flows.count() <= 100);
    }
    FUZZ_CHECK(!is_answer(nic, *parsed) || parsed->source == nic.mac);
    carries(frame, Nonce{});
    if (const auto answer = answer_for(nic, *parsed)) {
        FUZZ_CHECK(filter.from_vm(*parse_frame(*answer)));
    }
    return 0;
}
