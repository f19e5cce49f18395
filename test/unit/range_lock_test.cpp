// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/range_lock.h"

#include <random>

#include <doctest/doctest.h>

using namespace drover;

TEST_CASE("range lock: ranges apart are held together, overlapping ones in turn") {
    RangeLock locks(1);
    int a = 0, b = 0, c = 0;
    const auto first = locks.acquire({0, 10}, &a);
    const auto second = locks.acquire({5, 10}, &b);
    const auto third = locks.acquire({15, 1}, &c);
    CHECK(first->granted);
    CHECK_FALSE(second->granted);
    CHECK(third->granted);
    std::vector<void*> granted;
    locks.release(third, granted);
    CHECK(granted.empty());
    locks.release(first, granted);
    CHECK((granted == std::vector<void*>{&b}));
    CHECK(second->granted);
    CHECK_FALSE(locks.empty());
    locks.release(second, granted);
    CHECK(locks.empty());
}

TEST_CASE("range lock: a large range is not overtaken by small ones that come later") {
    RangeLock locks(1);
    int large = 0, small = 0;
    const auto held = locks.acquire({0, 10});
    const auto waits = locks.acquire({0, 1000}, &large);
    const auto behind = locks.acquire({500, 1}, &small);
    CHECK_FALSE(waits->granted);
    CHECK_FALSE(behind->granted); // nobody holds byte 500, but somebody was there before
    std::vector<void*> granted;
    locks.release(held, granted);
    CHECK((granted == std::vector<void*>{&large}));
    CHECK_FALSE(behind->granted);
    granted.clear();
    locks.release(waits, granted);
    CHECK((granted == std::vector<void*>{&small}));
    locks.release(behind, granted);
}

TEST_CASE("range lock: rounded out to the granularity") {
    RangeLock locks(4096);
    const auto first = locks.acquire({4095, 1});
    CHECK((first->range == Extent{0, 4096}));
    const auto neighbour = locks.acquire({0, 1});
    const auto apart = locks.acquire({4096, 1});
    CHECK_FALSE(neighbour->granted);
    CHECK(apart->granted);
    const auto across = locks.acquire({8191, 2});
    CHECK((across->range == Extent{4096, 8192}));
    CHECK_FALSE(across->granted);
}

TEST_CASE("range lock: two that were held up by one are let go together") {
    RangeLock locks(1);
    int a = 0, b = 0;
    const auto wide = locks.acquire({0, 100});
    const auto left = locks.acquire({0, 10}, &a);
    const auto right = locks.acquire({90, 10}, &b);
    std::vector<void*> granted;
    locks.release(wide, granted);
    CHECK((granted == std::vector<void*>{&a, &b}));
    CHECK(left->granted);
    CHECK(right->granted);
}

TEST_CASE("range lock: at random, no two holders overlap, and nobody waits without a reason") {
    std::mt19937 random(7);
    RangeLock locks(8);
    std::vector<RangeLock::Ticket> all; // in the order of their coming
    for (int step = 0; step < 20'000; ++step) {
        if (all.size() < 12 && random() % 2 == 0) {
            all.push_back(locks.acquire({random() % 200, 1 + random() % 40}));
        } else if (!all.empty()) {
            const size_t pick = random() % all.size();
            if (all[pick]->granted) {
                std::vector<void*> granted;
                locks.release(all[pick], granted);
                all.erase(all.begin() + static_cast<ptrdiff_t>(pick));
            }
        }
        for (size_t i = 0; i < all.size(); ++i) {
            bool free = true;
            for (size_t k = 0; k < i; ++k) {
                free = free && !all[k]->range.overlaps(all[i]->range);
            }
            REQUIRE(all[i]->granted == free);
        }
    }
}
