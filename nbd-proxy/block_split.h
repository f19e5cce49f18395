// SPDX-License-Identifier: GPL-2.0-or-later
// Ranges of bytes on storage that takes whole blocks only. unit: the block's size.
#pragma once

#include "common/units.h"

namespace drover {

// The smallest range of whole blocks around where.
constexpr Extent covering_blocks(Extent where, uint64_t unit) {
    const uint64_t first = round_down(where.offset, unit);
    return {first, round_up(where.end(), unit) - first};
}

// head and tail: a part of one block each; middle: whole blocks. Any of them may be empty.
struct BlockSplit {
    Extent head, middle, tail;

    constexpr bool whole() const { return head.length == 0 && tail.length == 0; }
};

constexpr BlockSplit split_blocks(Extent where, uint64_t unit) {
    const uint64_t first = std::min(round_up(where.offset, unit), where.end());
    const uint64_t last = std::max(round_down(where.end(), unit), first);
    return {.head = {where.offset, first - where.offset},
            .middle = {first, last - first},
            .tail = {last, where.end() - last}};
}

} // namespace drover
