// SPDX-License-Identifier: GPL-2.0-or-later
// The hashes of a disk's blocks as they were at one moment, taken while its
// clients write on: a block is hashed before its first write, or when somebody asks.
#pragma once

#include "nbd-proxy/backend.h"
#include "nbd-proxy/core/block_map.h"
#include "nbd-proxy/core/checksum.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace drover {

// Of one block as it reads now; `seed` is the disk's.
Hash128 hash_block(Backend& disk, const BlockGeometry& geometry, uint64_t block, uint64_t seed);
// What the hashes of a disk are seeded with, on both sides.
uint64_t hash_seed(const std::array<std::byte, 16>& uuid);

// Thread-safe. Memory: 16 bytes a block, for those groups of 4096 blocks that were asked for or
// written.
class HashSnapshot {
public:
    // From now on every change of the disk has to be announced to preserve() first.
    HashSnapshot(Backend& disk, BlockGeometry geometry, uint64_t seed);

    // Before a change of this range. A block that cannot be read does not stop the change;
    // its hash is unknown for good.
    void preserve(Extent range) noexcept;
    // Throws Error(io) if the block could not be read.
    Hash128 hash(uint64_t block);
    // A change was announced.
    bool touched() const { return touched_; }

private:
    static constexpr uint64_t group_blocks = 4096;
    enum State : uint8_t { open, done, unknown };
    struct Group {
        std::array<Hash128, group_blocks> hashes;
        std::array<std::atomic<uint8_t>, group_blocks> states{};
    };

    Group& group(uint64_t block);
    State settle(uint64_t block) noexcept;

    Backend& disk_;
    const BlockGeometry geometry_;
    const uint64_t seed_;
    std::mutex groups_mutex_;
    std::vector<std::unique_ptr<Group>> groups_;
    std::atomic<bool> touched_{false};
    std::array<std::mutex, 64> stripes_; // by block: one thread hashes it, the others wait
};

} // namespace drover
