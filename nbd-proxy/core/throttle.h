// SPDX-License-Identifier: GPL-2.0-or-later
// Slows down the writers that keep a stream from getting ready (docs/design.md,
// 3): those that make more new work than the link drains, and of what they write first
// the regions that make most of it. A count of writes says nothing about that; new work
// against the drain rate does.
//
// Clients share what may be made fairly (max-min: Bertsekas and Gallager, "Data Networks", 6.5.2),
// so one that asks for less than its share never waits. Within a client that asks for more, a
// write of a region that makes little of its work waits only when the others alone can't
// make up for it. Pure: the caller waits.
#pragma once

#include "common/units.h"

#include <array>
#include <cstdint>
#include <map>
#include <vector>

namespace drover {

// Not thread-safe: the caller holds one mutex around every call. Times are microseconds of one
// monotonic clock, rates bytes of new work a second.
class Throttle {
public:
    using ClientId = uint64_t; // of one connection; never used again for another

    struct Limits {
        // The longest that one write waits: at first, and after it was doubled step by step because
        // what is left to do still grew.
        uint64_t first_delay_us = 50'000, last_delay_us = 1'000'000;
        // So many writes of a client wait for so long at a time. QEMU keeps 16 requests in
        // flight, and when all of them wait its reads do too: what comes on top waits for a
        // fraction of that.
        unsigned long_waits = 12;
    };
    // What the sender measured, each `tick`.
    struct Load {
        uint64_t drain_rate = 0;
        uint64_t write_rate = 0;
        uint64_t left = 0; // bytes that are still to be acknowledged
        bool ready = false;
        bool stalled = false; // nothing is acknowledged at all: nobody waits for that
    };
    struct ClientStatus {
        ClientId client = 0;
        uint64_t rate = 0;  // of new work, lately
        uint64_t share = 0; // of it that it may make; 0: no bound
        uint64_t delayed_writes = 0, delayed_us = 0;
    };

    Throttle() = default;
    explicit Throttle(Limits limits) : limits_(limits) {}

    // --- writes
    struct Wait {
        uint64_t us = 0;
        bool is_long = false; // one of long_waits
    };
    // Before a write that will make `work` bytes of new work, and before it takes any
    // lock: how long it waits. If that is not 0, say when it has, and how long it was.
    Wait wait_for(ClientId client, uint64_t offset, uint64_t work, uint64_t now_us);
    void waited(ClientId client, Wait wait, uint64_t us);
    // It was done, and made so much. Not accounted for where there is no memory to.
    void wrote(ClientId client, uint64_t offset, uint64_t work) noexcept;

    // --- control
    void tick(const Load& load, uint64_t now_us);
    // Whoever waits need not any longer; it begins again when it must.
    void release();
    bool active() const { return active_; }
    uint64_t limit() const { return limit_; } // new work of all clients, a second
    uint64_t longest_delay_us() const { return longest_us_; }
    // Those that were slowed down in this stream and still write.
    std::vector<ClientStatus> clients() const;

private:
    static constexpr uint64_t region_bytes = MiB;
    // Regions share these counters by their hash: a cold one that meets a hot one waits with it.
    using Regions = std::array<uint64_t, 256>;
    static constexpr uint64_t unbounded = UINT64_MAX;

    struct Client {
        uint64_t made = 0; // since the last tick
        uint64_t rate = 0;
        uint64_t share = unbounded;
        uint64_t credit_at_us = 0; // from when on what it has made is within its share
        unsigned waiting = 0, waiting_long = 0;
        bool was_slowed = false; // since the last tick
        unsigned quiet_ticks = 0;
        Regions regions{}; // what each made, halved every half-life
        uint64_t delayed_writes = 0, delayed_us = 0;
    };

    static uint64_t& region(Client& client, uint64_t offset);
    static bool is_hot(const Client& client, uint64_t made_there);
    void measure_clients(uint64_t now_us);
    void share_out();
    void adapt_delay(const Load& load, uint64_t now_us);

    Limits limits_;
    std::map<ClientId, Client> clients_;
    bool active_ = false;
    uint64_t limit_ = 0;
    uint64_t longest_us_ = limits_.first_delay_us;
    unsigned behind_ticks_ = 0, calm_ticks_ = 0, ticks_ = 0;
    uint64_t left_before_ = 0; // when the delay was last looked at
    unsigned in_vain_ = 0;     // looks at the longest delay that there is, and it still grew
    uint64_t rests_until_us_ = 0;
    uint64_t ticked_us_ = 0;
};

} // namespace drover
