// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/aligned_io.h"

#include "nbd-proxy/block_split.h"
#include "nbd-proxy/raw_io.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

namespace drover {
namespace {

constexpr size_t bounce_size = 1 * MiB; // a multiple of every logical block size
constexpr size_t bounce_alignment = 64 * KiB;

// One for each thread that ever did unaligned I/O (nbdkit's pool is small), until it ends.
std::byte* bounce_buffer() {
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    thread_local std::unique_ptr<std::byte, Free> buffer;
    if (!buffer) {
        buffer.reset(static_cast<std::byte*>(std::aligned_alloc(bounce_alignment, bounce_size)));
        if (!buffer) {
            throw std::bad_alloc();
        }
    }
    return buffer.get();
}

bool aligned(uint64_t value, uint64_t unit) {
    return (value & (unit - 1)) == 0;
}

} // namespace

AlignedIo::AlignedIo(int fd, uint32_t alignment, std::string name)
    : fd_(fd), alignment_(alignment), name_(std::move(name)) {}

void AlignedIo::read(void* data, Extent where) {
    if (aligned(where.offset | where.length | std::bit_cast<uintptr_t>(data), alignment_)) {
        read_fully(fd_, data, where, name_);
        return;
    }
    std::byte* const bounce = bounce_buffer();
    auto* to = static_cast<std::byte*>(data);
    while (where.length > 0) {
        Extent cover = covering_blocks(where, alignment_);
        cover.length = std::min<uint64_t>(cover.length, bounce_size);
        read_fully(fd_, bounce, cover, name_);
        const uint64_t n = std::min(where.end(), cover.end()) - where.offset;
        std::memcpy(to, bounce + (where.offset - cover.offset), n);
        to += n;
        where = {where.offset + n, where.length - n};
    }
}

void AlignedIo::write(const void* data, Extent where, bool durable) {
    const auto* from = static_cast<const std::byte*>(data);
    const BlockSplit parts = split_blocks(where, alignment_);
    const EdgeLock::Guard guard = edges_.take(covering_blocks(where, alignment_), !parts.whole());
    rewrite(from, parts.head, durable);
    from += parts.head.length;
    write_aligned(from, parts.middle, durable);
    rewrite(from + parts.middle.length, parts.tail, durable);
}

bool AlignedIo::zero(Extent where, const std::function<bool(Extent)>& whole_blocks) {
    static const std::array<std::byte, bounce_alignment> zeroes{};
    const BlockSplit parts = split_blocks(where, alignment_);
    const EdgeLock::Guard guard = edges_.take(covering_blocks(where, alignment_), !parts.whole());
    if (parts.middle.length > 0 && !whole_blocks(parts.middle)) { // first: it may refuse
        return false;
    }
    rewrite(zeroes.data(), parts.head, false);
    rewrite(zeroes.data(), parts.tail, false);
    return true;
}

// where lies within one block.
void AlignedIo::rewrite(const void* data, Extent where, bool durable) {
    if (where.length == 0) {
        return;
    }
    std::byte* const bounce = bounce_buffer();
    const Extent block = covering_blocks(where, alignment_);
    read_fully(fd_, bounce, block, name_);
    std::memcpy(bounce + (where.offset - block.offset), data, where.length);
    write_fully(fd_, bounce, block, durable, name_);
}

void AlignedIo::write_aligned(const std::byte* data, Extent where, bool durable) {
    if (aligned(std::bit_cast<uintptr_t>(data), alignment_)) {
        write_fully(fd_, data, where, durable, name_);
        return;
    }
    std::byte* const bounce = bounce_buffer();
    while (where.length > 0) {
        const Extent piece{where.offset, std::min<uint64_t>(where.length, bounce_size)};
        std::memcpy(bounce, data, piece.length);
        write_fully(fd_, bounce, piece, durable, name_);
        data += piece.length;
        where = {piece.end(), where.length - piece.length};
    }
}

} // namespace drover
