// SPDX-License-Identifier: GPL-2.0-or-later
// How large a datagram the path takes, found by probes that are answered or not (as RFC 8899 does):
// no ICMP is believed or needed. Sizes are bytes of UDP payload. Pure: the time is a parameter, in
// ms of any steady clock. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace drover::tunnel {

class PathMtu {
public:
    static constexpr size_t base = 1200; // what IPv6 (1280) takes anywhere, with some room

    // largest: what to try first, base or more.
    explicit PathMtu(size_t largest) : largest_(largest), untried_(largest) {}

    // The largest that is known to pass; `base` until then.
    size_t size() const { return size_; }

    // The size to probe now, if it is time to; then it counts as sent. Probes of size() itself, one
    // a second, notice a path that has become narrower.
    std::optional<size_t> probe(uint64_t now_ms);
    // A probe of that size was answered.
    void answered(size_t size, uint64_t now_ms);

private:
    static constexpr int most_tries = 3;
    static constexpr size_t close_enough = 8;
    static constexpr uint64_t interval_ms = 1000, retry_ms = 600'000;

    bool searching() const { return untried_ >= size_ + close_enough; }
    void lost(uint64_t now_ms);

    size_t largest_;
    size_t size_ = base;
    size_t untried_;       // nothing above it is worth a probe
    size_t probed_ = 0;    // 0: no probe is out
    int tries_ = 0;        // of that size
    uint64_t next_ms_ = 0; // of the next probe, and the end of the one that is out
    uint64_t search_again_ms_ = 0;
};

} // namespace drover::tunnel
