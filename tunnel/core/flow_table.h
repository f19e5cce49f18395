// SPDX-License-Identifier: GPL-2.0-or-later
// The flows that still use the old addresses: TCP by its flags, the rest by idle time. A flow that
// is met in mid-life is live, so the table may be lost. Pure: the time is a parameter, in ms of any
// steady clock. One thread at a time.
#pragma once

#include "tunnel/core/packet.h"

#include <list>
#include <unordered_map>

namespace drover::tunnel {

enum class FlowClass : uint8_t {
    tcp_opening, // a SYN, no answer taken yet
    tcp_open,
    tcp_closing, // both sides have said FIN, or one RST
    udp,
    icmp,
    other,
};
inline constexpr size_t flow_classes = 6;

struct FlowLimits {
    size_t flows = 100'000;
    // After so long without a packet a flow is over.
    std::array<uint64_t, flow_classes> idle_ms{60'000, 7'440'000, 30'000, 120'000, 30'000, 120'000};
};

class FlowTable {
public:
    explicit FlowTable(FlowLimits limits = {});

    // A packet that is carried; what is no IP is none. `size`: of the frame, in bytes.
    void seen(const Parsed& frame, bool from_vm, size_t size, uint64_t now_ms);
    // Forgets what has been idle for too long.
    void expire(uint64_t now_ms);

    size_t count(FlowClass which) const { return lists_[static_cast<size_t>(which)].size(); }
    size_t count() const { return index_.size(); }
    // Those that somebody uses: both sides have spoken, and have not ended it. Scans of a public
    // address are none, nor is an echo.
    size_t live() const { return live_; }
    uint64_t bytes_to_vm() const { return to_vm_; }
    uint64_t bytes_from_vm() const { return from_vm_; }
    uint64_t evicted() const { return evicted_; } // for want of room
    // Of the flow that was met first, and of the latest packet of any; nullopt if there is none.
    std::optional<uint64_t> oldest_ms(uint64_t now_ms) const;
    std::optional<uint64_t> idle_ms(uint64_t now_ms) const;

private:
    struct Key {
        Ip vm, peer;
        uint16_t vm_port = 0, peer_port = 0;
        uint8_t protocol = 0;
        bool operator==(const Key&) const = default;
    };
    struct Hash {
        uint64_t seed;
        size_t operator()(const Key& key) const;
    };
    struct Flow {
        Key key;
        FlowClass state = FlowClass::other;
        uint8_t fins = 0, heard = 0; // 1: from the VM, 2: from the peer
        uint64_t since_ms = 0, last_ms = 0;
    };
    using List = std::list<Flow>; // the one that was idle longest first

    List& list_of(FlowClass which) { return lists_[static_cast<size_t>(which)]; }
    void make_room();
    void remove(List& list);
    static bool is_live(const Flow& flow);

    FlowLimits limits_;
    std::array<List, flow_classes> lists_;
    std::unordered_map<Key, List::iterator, Hash> index_;
    size_t live_ = 0;
    uint64_t to_vm_ = 0, from_vm_ = 0, evicted_ = 0;
    uint64_t last_ms_ = 0;
};

} // namespace drover::tunnel
