// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/block_map.h"

#include <bit>

namespace drover {

BlockMap::BlockMap(BlockGeometry geometry)
    : geometry_(geometry), bits_((geometry.blocks() + 63) / 64),
      groups_((geometry.blocks() + group_blocks - 1) / group_blocks) {}

void BlockMap::mark_all() {
    std::fill(bits_.begin(), bits_.end(), ~uint64_t{0});
    if (const uint64_t rest = geometry_.blocks() % 64; rest != 0) {
        bits_.back() = (uint64_t{1} << rest) - 1;
    }
    for (auto& group : groups_) {
        group.reset();
    }
    dirty_blocks_ = geometry_.blocks();
    dirty_bytes_ = geometry_.disk_size;
}

void BlockMap::clear_all() {
    std::fill(bits_.begin(), bits_.end(), 0);
    for (auto& group : groups_) {
        group.reset();
    }
    dirty_blocks_ = dirty_bytes_ = 0;
}

// A sub-block that the end of the disk cuts counts with what is left of it.
uint64_t BlockMap::bytes_in(uint64_t block, Mask mask) const {
    const Extent bytes = geometry_.bytes_of(block, 1);
    if (mask == full) {
        return bytes.length;
    }
    if (bytes.length == geometry_.block_size) {
        return uint64_t{geometry_.sub_block_size()} * static_cast<unsigned>(std::popcount(mask));
    }
    uint64_t sum = 0;
    for (unsigned i = 0; i < BlockGeometry::sub_blocks; ++i) {
        const uint64_t begin = uint64_t{i} * geometry_.sub_block_size();
        if ((mask >> i & 1) != 0 && begin < bytes.length) {
            sum += std::min<uint64_t>(geometry_.sub_block_size(), bytes.length - begin);
        }
    }
    return sum;
}

BlockMap::Mask BlockMap::mask(uint64_t block) const {
    if (!dirty(block)) {
        return 0;
    }
    const auto& group = groups_[block / group_blocks];
    const Mask partial = group ? group->masks[block % group_blocks] : Mask{0};
    return partial != 0 ? partial : full;
}

void BlockMap::set_mask(uint64_t block, Mask mask) {
    const Mask before = this->mask(block);
    const uint64_t bit = uint64_t{1} << (block % 64);
    dirty_bytes_ += bytes_in(block, mask) - bytes_in(block, before);
    dirty_blocks_ += static_cast<uint64_t>(mask != 0) - static_cast<uint64_t>(before != 0);
    bits_[block / 64] = mask != 0 ? bits_[block / 64] | bit : bits_[block / 64] & ~bit;

    auto& group = groups_[block / group_blocks];
    const Mask partial = mask == full ? Mask{0} : mask;
    if (!group) {
        if (partial == 0) {
            return;
        }
        group = std::make_unique<Group>();
    }
    Mask& slot = group->masks[block % group_blocks];
    group->partial += static_cast<uint64_t>(partial != 0) - static_cast<uint64_t>(slot != 0);
    slot = partial;
    if (group->partial == 0) {
        group.reset();
    }
}

void BlockMap::mark(Extent range) {
    if (range.length == 0) {
        return;
    }
    const uint64_t sub_size = geometry_.sub_block_size();
    const uint64_t last = geometry_.block_of(range.end() - 1);
    for (uint64_t block = geometry_.block_of(range.offset); block <= last; ++block) {
        const Extent bytes = geometry_.bytes_of(block, 1);
        const uint64_t begin = std::max(range.offset, bytes.offset) - bytes.offset;
        const uint64_t end = std::min(range.end(), bytes.end()) - bytes.offset;
        // What reaches the end of the disk reaches the end of its block.
        const uint64_t first_sub = begin / sub_size;
        const uint64_t end_sub =
            end == bytes.length ? BlockGeometry::sub_blocks : (end + sub_size - 1) / sub_size;
        const unsigned bits = (1U << end_sub) - (1U << first_sub);
        set_mask(block, static_cast<Mask>(mask(block) | bits));
    }
}

void BlockMap::clear(uint64_t block) {
    set_mask(block, 0);
}

std::optional<uint64_t> BlockMap::next_dirty(uint64_t from, uint64_t to) const {
    to = std::min(to, geometry_.blocks());
    for (uint64_t block = from; block < to;) {
        const uint64_t word = bits_[block / 64] >> (block % 64);
        if (word != 0) {
            block += static_cast<unsigned>(std::countr_zero(word));
            return block < to ? std::optional(block) : std::nullopt;
        }
        block = (block / 64 + 1) * 64;
    }
    return std::nullopt;
}

uint64_t BlockMap::run_of_full(uint64_t from, uint64_t to) const {
    to = std::min(to, geometry_.blocks());
    uint64_t block = from;
    while (block < to && mask(block) == full) {
        ++block;
    }
    return block - from;
}

} // namespace drover
