// SPDX-License-Identifier: GPL-2.0-or-later
// Which blocks of a disk have been written since some moment.
#pragma once

#include "nbd-proxy/core/block_map.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

namespace drover {

// Thread-safe, without a lock: every write of a guest goes by. Memory: 1 bit a block, untouched
// where nothing was written.
class WrittenBlocks {
public:
    explicit WrittenBlocks(BlockGeometry geometry)
        : geometry_(geometry), words_(static_cast<uint64_t*>(
                                   std::calloc(geometry.blocks() / 64 + 1, sizeof(uint64_t)))) {
        if (!words_) {
            throw std::bad_alloc();
        }
    }

    // Before the write: whoever reads a block, and then sees no mark, has read it as it was.
    void mark(Extent range) noexcept {
        if (range.length == 0) {
            return;
        }
        const uint64_t last = geometry_.block_of(range.end() - 1);
        for (uint64_t block = geometry_.block_of(range.offset); block <= last; ++block) {
            const uint64_t bit = uint64_t{1} << (block % 64);
            const std::atomic_ref<uint64_t> word(words_.get()[block / 64]);
            if ((word.load() & bit) == 0) { // else its cache line stays shared
                word.fetch_or(bit);
            }
        }
    }
    bool has(uint64_t block) const noexcept {
        const std::atomic_ref<uint64_t> word(words_.get()[block / 64]);
        return (word.load() >> (block % 64) & 1) != 0;
    }

private:
    struct Free {
        void operator()(uint64_t* words) const { std::free(words); }
    };

    const BlockGeometry geometry_;
    std::unique_ptr<uint64_t, Free> words_;
};

} // namespace drover
