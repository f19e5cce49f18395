// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/hash_snapshot.h"

#include "test/unit/memory_backend.h"

#include <random>
#include <thread>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t size = 20 * 4096 + 5;
constexpr BlockGeometry geometry{size, 4096};
constexpr uint64_t seed = 42;

bool same(const Hash128& a, const Hash128& b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

} // namespace

TEST_CASE("hash snapshot: the disk as it was, whatever is written since") {
    MemoryBackend backend(size);
    std::vector<std::byte> data(size);
    std::mt19937 random(1);
    std::generate(data.begin(), data.end(), [&] { return static_cast<std::byte>(random()); });
    backend.write(data.data(), {0, size}, false);
    std::vector<Hash128> before;
    for (uint64_t block = 0; block < geometry.blocks(); ++block) {
        before.push_back(hash_block(backend, geometry, block, seed));
    }
    HashSnapshot snapshot(backend, geometry, seed);
    CHECK(same(snapshot.hash(3), before[3]));
    const Extent change{4096 * 3 + 4000, 4096 * 2};
    snapshot.preserve(change); // blocks 3, 4 and 5
    snapshot.preserve({size - 1, 1});
    snapshot.preserve({0, 0});
    const std::vector<std::byte> zeroes(size);
    backend.write(zeroes.data(), change, false);
    backend.write(zeroes.data(), {size - 1, 1}, false);
    for (uint64_t block = 0; block < geometry.blocks(); ++block) {
        CHECK(same(snapshot.hash(block), before[block]));
    }
    CHECK_FALSE(same(hash_block(backend, geometry, 4, seed), before[4]));
    CHECK_FALSE(same(hash_block(backend, geometry, 0, seed + 1), before[0]));
    // Each block is read once for it.
    backend.reads = 0;
    snapshot.hash(4);
    CHECK(backend.reads == 0);
}

TEST_CASE("hash snapshot: a block that can't be read is unknown for good, the change goes on") {
    MemoryBackend backend(size);
    HashSnapshot snapshot(backend, geometry, seed);
    backend.fail_reads = EIO;
    snapshot.preserve({0, 1});
    backend.fail_reads = 0;
    CHECK_THROWS_AS(snapshot.hash(0), Error);
    CHECK_NOTHROW(snapshot.hash(1));
}

TEST_CASE("hash snapshot: writers and askers at once") {
    MemoryBackend backend(size);
    HashSnapshot snapshot(backend, geometry, seed);
    const Hash128 zero = hash_block(backend, geometry, 0, seed);
    const Hash128 last = hash_block(backend, geometry, geometry.blocks() - 1, seed);
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
            std::mt19937 random(thread);
            const std::vector<std::byte> data(4096, std::byte{1});
            for (int i = 0; i < 300; ++i) {
                const uint64_t block = random() % geometry.blocks();
                if (thread % 2 == 0) {
                    const Extent bytes = geometry.bytes_of(block, 1);
                    snapshot.preserve(bytes);
                    backend.write(data.data(), bytes, false);
                } else {
                    const bool at_end = block + 1 == geometry.blocks();
                    wrong += same(snapshot.hash(block), at_end ? last : zero) ? 0 : 1;
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(wrong == 0);
}
