// SPDX-License-Identifier: GPL-2.0-or-later
// What still has to be captured: a bit a block, and for blocks that are dirty
// in part a 16-bit mask of their sub-blocks.
//
// Memory: 1 bit a block, and 2 bytes a block for each group of 4096 blocks that has one that is
// dirty in part (for 8 TiB in blocks of 64 KiB: 16 MiB, and at worst 256 MiB more).
#pragma once

#include "common/units.h"

#include <array>
#include <memory>
#include <optional>
#include <vector>

namespace drover {

// The disk as blocks; converts in one direction each way, so that rounding is never by accident.
struct BlockGeometry {
    uint64_t disk_size = 0;         // bytes, any number
    uint32_t block_size = 64 * KiB; // a power of two from 4 KiB to 1 MiB

    static constexpr unsigned sub_blocks = 16;

    constexpr uint64_t blocks() const { return (disk_size + block_size - 1) / block_size; }
    constexpr uint32_t sub_block_size() const { return block_size / sub_blocks; }
    constexpr uint64_t block_of(uint64_t offset) const { return offset / block_size; }
    // The bytes of blocks [first, first + count), cut off at the end of the disk.
    constexpr Extent bytes_of(uint64_t first, uint64_t count) const {
        const uint64_t begin = first * block_size;
        return {begin, std::min((first + count) * block_size, disk_size) - begin};
    }
};

// Not thread-safe: the caller holds its own mutex.
class BlockMap {
public:
    using Mask = uint16_t;
    static constexpr Mask full = 0xffff;

    explicit BlockMap(BlockGeometry geometry);

    const BlockGeometry& geometry() const { return geometry_; }

    void mark_all();
    void clear_all();
    // Every sub-block that the range touches.
    void mark(Extent range);
    void clear(uint64_t block);
    bool dirty(uint64_t block) const { return (bits_[block / 64] >> (block % 64) & 1) != 0; }
    Mask mask(uint64_t block) const;

    // The first dirty block in [from, to).
    std::optional<uint64_t> next_dirty(uint64_t from, uint64_t to) const;
    // How many blocks from `from` on, before `to`, are dirty as a whole.
    uint64_t run_of_full(uint64_t from, uint64_t to) const;

    uint64_t dirty_blocks() const { return dirty_blocks_; }
    // Bytes of the dirty sub-blocks.
    uint64_t dirty_bytes() const { return dirty_bytes_; }

private:
    static constexpr uint64_t group_blocks = 4096;
    struct Group {
        uint64_t partial = 0;                   // blocks of it that are dirty in part
        std::array<Mask, group_blocks> masks{}; // 0: not dirty in part
    };

    uint64_t bytes_in(uint64_t block, Mask mask) const;
    void set_mask(uint64_t block, Mask mask);

    BlockGeometry geometry_;
    std::vector<uint64_t> bits_;
    std::vector<std::unique_ptr<Group>> groups_; // null: none of it is dirty in part
    uint64_t dirty_blocks_ = 0;
    uint64_t dirty_bytes_ = 0;
};

} // namespace drover
