// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/buffer_pool.h"

#include <cstdlib>
#include <new>

namespace drover {
namespace {

constexpr size_t alignment = 4096; // of memory for O_DIRECT

std::shared_ptr<std::byte> aligned(size_t size) {
    auto* const memory =
        static_cast<std::byte*>(std::aligned_alloc(alignment, round_up(size, alignment)));
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return {memory, [](std::byte* p) { std::free(p); }};
}

} // namespace

BufferPool::BufferPool(size_t capacity, size_t kept)
    : capacity_(round_up(capacity, alignment)), arena_(aligned(kept * (headroom + capacity_))),
      kept_(kept) {
    for (size_t i = kept; i-- > 0;) {
        free_.push_back(arena_.get() + i * (headroom + capacity_));
    }
}

FrameBuffer BufferPool::take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
        return allocate(capacity_);
    }
    std::byte* const memory = free_.back();
    free_.pop_back();
    return {std::shared_ptr<std::byte>(
                memory, [pool = shared_from_this()](std::byte* p) { pool->give_back(p); }),
            headroom,
            capacity_};
}

void BufferPool::give_back(std::byte* memory) {
    const std::lock_guard lock(mutex_);
    free_.push_back(memory);
}

FrameBuffer BufferPool::allocate(size_t capacity) {
    return {aligned(headroom + capacity), headroom, capacity};
}

std::vector<iovec> BufferPool::memory() const {
    std::vector<iovec> all;
    for (size_t i = 0; i < kept_; ++i) {
        all.push_back({arena_.get() + i * (headroom + capacity_), headroom + capacity_});
    }
    return all;
}

} // namespace drover
