// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/throttle.h"

#include <algorithm>
#include <new>
#include <utility>

namespace drover {
namespace {

// Ticks: half a second of falling behind, and two of nobody waiting, are no chance.
constexpr unsigned behind_for = 5, calm_for = 20;
constexpr unsigned delay_every = 10; // ticks between two looks at the longest delay
constexpr unsigned half_life = 20;   // of what regions made
constexpr unsigned forgotten_after = 100;
// Looks in which the longest waits did not help: then they only hurt (few, large writes), and are
// tried again after a while.
constexpr unsigned in_vain_for = 10;
constexpr uint64_t rest_us = 30'000'000;
// Of the drain rate, in percent: what new work may take of it. The rest is what the backlog shrinks
// by; when there is none, it is margin.
constexpr uint64_t too_much = 90, share_behind = 80, share_ready = 90;
constexpr uint64_t burst_us = 20'000;

constexpr uint64_t percent(uint64_t value, uint64_t part) {
    return value / 100 * part;
}

} // namespace

uint64_t& Throttle::region(Client& client, uint64_t offset) {
    constexpr uint64_t spread = 0x9e3779b97f4a7c15; // 2^64 by the golden ratio: Knuth, TAOCP 3, 6.4
    return client.regions[(offset / region_bytes * spread) >> 56];
}

// Makes at least half of what a region makes on average. Where the writes are spread evenly, that
// is every one.
bool Throttle::is_hot(const Client& client, uint64_t made_there) {
    uint64_t sum = 0, used = 0;
    for (const uint64_t made : client.regions) {
        sum += made;
        used += made != 0 ? 1 : 0;
    }
    return used == 0 || made_there * used * 2 >= sum;
}

Throttle::Wait Throttle::wait_for(ClientId id, uint64_t offset, uint64_t work, uint64_t now_us) {
    if (!active_ || work == 0) {
        return {};
    }
    Client& client = clients_[id];
    if (client.share == unbounded) {
        return {};
    }
    client.credit_at_us = std::max(client.credit_at_us + burst_us, now_us) - burst_us;
    uint64_t wait_us = client.credit_at_us - std::min(client.credit_at_us, now_us);
    // What goes ahead all the same stays owed, but not for ever.
    client.credit_at_us =
        std::min(client.credit_at_us + work * 1'000'000 / client.share, now_us + 2 * longest_us_);
    if (!is_hot(client, region(client, offset))) {
        wait_us -= std::min(wait_us, longest_us_);
    }
    const uint64_t brief_us = longest_us_ / limits_.long_waits;
    const bool briefly = client.waiting_long >= limits_.long_waits;
    const Wait wait{std::min(wait_us, briefly ? brief_us : longest_us_),
                    !briefly && wait_us > brief_us};
    if (wait.us != 0) {
        client.was_slowed = true;
        ++client.waiting;
        client.waiting_long += wait.is_long ? 1 : 0;
        ++client.delayed_writes;
    }
    return wait;
}

// Who waits is not forgotten meanwhile: measure_clients.
void Throttle::waited(ClientId id, Wait wait, uint64_t us) {
    Client& client = clients_.at(id);
    --client.waiting;
    client.waiting_long -= wait.is_long ? 1 : 0;
    client.delayed_us += us;
}

void Throttle::wrote(ClientId id, uint64_t offset, uint64_t work) noexcept {
    if (work == 0) {
        return;
    }
    try {
        Client& client = clients_[id];
        client.made += work;
        region(client, offset) += work;
    } catch (const std::bad_alloc&) {
        // The write is done, and must not fail for this.
    }
}

void Throttle::tick(const Load& load, uint64_t now_us) {
    measure_clients(now_us);
    if (load.stalled) {
        release();
        return;
    }
    if (!active_) {
        const bool behind = !load.ready && load.drain_rate > 0 &&
                            load.write_rate > percent(load.drain_rate, too_much);
        behind_ticks_ = behind ? behind_ticks_ + 1 : 0;
        if (behind_ticks_ < behind_for || now_us < rests_until_us_) {
            return;
        }
        active_ = true;
        calm_ticks_ = in_vain_ = 0;
        ticks_ = 1; // the delay is looked at some ticks from now
        longest_us_ = limits_.first_delay_us;
        left_before_ = load.left;
    }
    limit_ =
        std::max<uint64_t>(percent(load.drain_rate, load.ready ? share_ready : share_behind), 1);
    share_out();
    adapt_delay(load, now_us);
    const bool slowed = std::any_of(
        clients_.begin(), clients_.end(), [](const auto& each) { return each.second.was_slowed; });
    for (auto& [id, client] : clients_) {
        client.was_slowed = client.waiting != 0;
    }
    calm_ticks_ = slowed ? 0 : calm_ticks_ + 1;
    if (calm_ticks_ >= calm_for) {
        release();
    }
}

void Throttle::measure_clients(uint64_t now_us) {
    const uint64_t span_us = now_us - std::exchange(ticked_us_, now_us);
    ++ticks_;
    for (auto it = clients_.begin(); it != clients_.end();) {
        Client& client = it->second;
        const uint64_t made = std::exchange(client.made, 0);
        const uint64_t rate = made * 1'000'000 / std::max<uint64_t>(span_us, 1);
        client.rate = (3 * client.rate + rate) / 4;
        client.quiet_ticks = made != 0 || client.waiting != 0 ? 0 : client.quiet_ticks + 1;
        if (client.quiet_ticks > forgotten_after) {
            it = clients_.erase(it);
            continue;
        }
        if (ticks_ % half_life == 0) {
            for (uint64_t& made_there : client.regions) {
                made_there /= 2;
            }
        }
        ++it;
    }
}

void Throttle::share_out() {
    // Who was slowed down wants more than it made, nobody knows how much.
    const auto wish = [](const Client& client) {
        return client.was_slowed ? unbounded : client.rate;
    };
    std::vector<Client*> order;
    for (auto& [id, client] : clients_) {
        order.push_back(&client);
    }
    std::sort(order.begin(), order.end(), [&](const Client* a, const Client* b) {
        return wish(*a) < wish(*b);
    });
    uint64_t left = limit_;
    for (size_t i = 0; i < order.size(); ++i) {
        const uint64_t fair = std::max<uint64_t>(left / (order.size() - i), 1);
        const uint64_t wanted = wish(*order[i]);
        order[i]->share = wanted <= fair ? unbounded : fair;
        left -= std::min(left, std::min(wanted, fair));
    }
}

void Throttle::adapt_delay(const Load& load, uint64_t now_us) {
    if (load.ready) {
        longest_us_ = limits_.first_delay_us; // a pause of the guest waits for its writes
        in_vain_ = 0;
    } else if (ticks_ % delay_every == 0) {
        const bool grew = load.left >= left_before_;
        in_vain_ = grew && longest_us_ == limits_.last_delay_us ? in_vain_ + 1 : 0;
        longest_us_ = grew ? std::min(2 * longest_us_, limits_.last_delay_us)
                           : std::max(longest_us_ / 2, limits_.first_delay_us);
        left_before_ = load.left;
    }
    if (in_vain_ >= in_vain_for) {
        rests_until_us_ = now_us + rest_us;
        release();
    }
}

void Throttle::release() {
    active_ = false;
    behind_ticks_ = 0;
    for (auto& [id, client] : clients_) {
        client.share = unbounded;
        client.credit_at_us = 0;
    }
}

std::vector<Throttle::ClientStatus> Throttle::clients() const {
    std::vector<ClientStatus> slowed;
    for (const auto& [id, client] : clients_) {
        if (client.delayed_writes != 0) {
            slowed.push_back({id,
                              client.rate,
                              client.share == unbounded ? 0 : client.share,
                              client.delayed_writes,
                              client.delayed_us});
        }
    }
    return slowed;
}

} // namespace drover
