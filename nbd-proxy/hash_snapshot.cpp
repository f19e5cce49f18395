// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/hash_snapshot.h"

#include "common/error.h"

#include <cstring>

namespace drover {

Hash128 hash_block(Backend& disk, const BlockGeometry& geometry, uint64_t block, uint64_t seed) {
    const Extent bytes = geometry.bytes_of(block, 1);
    thread_local std::vector<std::byte> buffer;
    buffer.resize(bytes.length);
    disk.read(buffer.data(), bytes);
    return hash128(buffer.data(), buffer.size(), seed);
}

uint64_t hash_seed(const std::array<std::byte, 16>& uuid) {
    uint64_t seed = 0;
    std::memcpy(&seed, uuid.data(), sizeof seed);
    return seed;
}

HashSnapshot::HashSnapshot(Backend& disk, BlockGeometry geometry, uint64_t seed)
    : disk_(disk), geometry_(geometry), seed_(seed),
      groups_((geometry.blocks() + group_blocks - 1) / group_blocks) {}

HashSnapshot::Group& HashSnapshot::group(uint64_t block) {
    const std::lock_guard lock(groups_mutex_);
    auto& group = groups_[block / group_blocks];
    if (!group) {
        group = std::make_unique<Group>();
    }
    return *group;
}

HashSnapshot::State HashSnapshot::settle(uint64_t block) noexcept {
    try {
        Group& in = group(block);
        std::atomic<uint8_t>& state = in.states[block % group_blocks];
        if (state == open) {
            const std::lock_guard lock(stripes_[block % stripes_.size()]);
            if (state == open) {
                State found = unknown;
                try {
                    in.hashes[block % group_blocks] = hash_block(disk_, geometry_, block, seed_);
                    found = done;
                } catch (const std::exception&) {
                    // The caller's change is not to fail for it.
                }
                state = found;
            }
        }
        return static_cast<State>(state.load());
    } catch (const std::bad_alloc&) {
        return unknown;
    }
}

void HashSnapshot::preserve(Extent range) noexcept {
    if (range.length == 0) {
        return;
    }
    touched_ = true;
    const uint64_t last = geometry_.block_of(range.end() - 1);
    for (uint64_t block = geometry_.block_of(range.offset); block <= last; ++block) {
        settle(block);
    }
}

Hash128 HashSnapshot::hash(uint64_t block) {
    if (settle(block) != done) {
        throw Error(ErrorKind::io,
                    fmt::format("block {} could not be read when it was to be hashed", block),
                    EIO);
    }
    return group(block).hashes[block % group_blocks];
}

} // namespace drover
