// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/flow_table.h"

#include <algorithm>
#include <cstring>
#include <random>

namespace drover::tunnel {
namespace {

constexpr uint8_t from_vm_bit = 1, from_peer_bit = 2;

uint64_t mixed(uint64_t value) { // the finalizer of SplitMix64
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
}

FlowClass class_without_state(const IpPacket& ip) {
    switch (ip.protocol) {
    case ip_udp:
        return FlowClass::udp;
    case ip_icmp:
    case ip_icmpv6:
        return FlowClass::icmp;
    default:
        return FlowClass::other;
    }
}

FlowClass next_tcp_state(FlowClass state, uint8_t flags, uint8_t& fins, bool from_vm) {
    if ((flags & tcp_flag::rst) != 0) {
        return FlowClass::tcp_closing;
    }
    if ((flags & tcp_flag::syn) != 0) {
        fins = 0;
        return FlowClass::tcp_opening;
    }
    if ((flags & tcp_flag::fin) != 0) {
        fins |= from_vm ? from_vm_bit : from_peer_bit;
    }
    if (fins == (from_vm_bit | from_peer_bit)) {
        return FlowClass::tcp_closing;
    }
    // A reset that the other side did not take: it goes on.
    return state == FlowClass::tcp_closing && fins != 0 ? state : FlowClass::tcp_open;
}

} // namespace

FlowTable::FlowTable(FlowLimits limits)
    : limits_(limits), index_(0, Hash{std::random_device{}() * 0x9e3779b97f4a7c15}) {}

// Seeded, so that a peer can't choose ports that collide.
size_t FlowTable::Hash::operator()(const Key& key) const {
    uint64_t words[5];
    std::memcpy(words, key.vm.bytes.data(), 16);
    std::memcpy(words + 2, key.peer.bytes.data(), 16);
    words[4] = static_cast<uint64_t>(key.vm_port) << 24 |
               static_cast<uint64_t>(key.peer_port) << 8 | key.protocol;
    uint64_t hash = seed;
    for (const uint64_t word : words) {
        hash = mixed(hash ^ word);
    }
    return hash;
}

void FlowTable::seen(const Parsed& frame, bool from_vm, size_t size, uint64_t now_ms) {
    if (!frame.ip || frame.ip->nd_target || frame.ip->dhcp) { // no flows, and never over
        return;
    }
    const IpPacket& ip = *frame.ip;
    (from_vm ? from_vm_ : to_vm_) += size;
    last_ms_ = now_ms;
    const Key key =
        from_vm ? Key{ip.source, ip.destination, ip.source_port, ip.destination_port, ip.protocol}
                : Key{ip.destination, ip.source, ip.destination_port, ip.source_port, ip.protocol};
    const bool tcp = ip.protocol == ip_tcp && ip.has_ports;
    auto found = index_.find(key);
    if (found == index_.end()) {
        make_room();
        const FlowClass first = tcp ? FlowClass::tcp_open : class_without_state(ip);
        List& list = list_of(first);
        list.push_back({key, first, 0, 0, now_ms, now_ms});
        found = index_.emplace(key, std::prev(list.end())).first;
    }
    Flow& flow = *found->second;
    live_ -= is_live(flow) ? 1 : 0;
    List& before = list_of(flow.state);
    if (tcp) {
        flow.state = next_tcp_state(flow.state, ip.tcp_flags, flow.fins, from_vm);
    }
    flow.heard |= from_vm ? from_vm_bit : from_peer_bit;
    flow.last_ms = now_ms;
    live_ += is_live(flow) ? 1 : 0;
    List& after = list_of(flow.state);
    after.splice(after.end(), before, found->second);
}

bool FlowTable::is_live(const Flow& flow) {
    return flow.heard == (from_vm_bit | from_peer_bit) &&
           (flow.state == FlowClass::tcp_open || flow.state == FlowClass::udp ||
            flow.state == FlowClass::other);
}

void FlowTable::remove(List& list) {
    live_ -= is_live(list.front()) ? 1 : 0;
    index_.erase(list.front().key);
    list.pop_front();
}

// What is least likely to be missed goes first.
void FlowTable::make_room() {
    if (index_.size() < limits_.flows) {
        return;
    }
    for (const FlowClass which : {FlowClass::tcp_closing,
                                  FlowClass::tcp_opening,
                                  FlowClass::icmp,
                                  FlowClass::other,
                                  FlowClass::udp,
                                  FlowClass::tcp_open}) {
        if (List& list = list_of(which); !list.empty()) {
            remove(list);
            ++evicted_;
            return;
        }
    }
}

void FlowTable::expire(uint64_t now_ms) {
    for (size_t i = 0; i < flow_classes; ++i) {
        while (!lists_[i].empty() && lists_[i].front().last_ms + limits_.idle_ms[i] <= now_ms) {
            remove(lists_[i]);
        }
    }
}

std::optional<uint64_t> FlowTable::oldest_ms(uint64_t now_ms) const {
    std::optional<uint64_t> since;
    for (const List& list : lists_) {
        for (const Flow& flow : list) {
            since = std::min(since.value_or(flow.since_ms), flow.since_ms);
        }
    }
    return since ? std::optional(now_ms - *since) : std::nullopt;
}

std::optional<uint64_t> FlowTable::idle_ms(uint64_t now_ms) const {
    return index_.empty() ? std::nullopt : std::optional(now_ms - last_ms_);
}

} // namespace drover::tunnel
