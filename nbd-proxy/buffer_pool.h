// SPDX-License-Identifier: GPL-2.0-or-later
// Memory for frames. The last one given back is the next one taken: few
// buffers in use stay in the CPU's cache.
#pragma once

#include "nbd-proxy/core/source.h"

#include <memory>
#include <mutex>
#include <vector>

#include <sys/uio.h>

namespace drover {

// Thread-safe. Buffers may outlive the pool's owner: they keep the pool alive.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
public:
    // Room in front of the data for a frame's header and table.
    static constexpr size_t headroom = 8 * KiB;
    static_assert(headroom >= frame_prefix_size(Source::Limits{}.frame_ops));

    // capacity: bytes of data of a buffer. `kept` of them are made at once (see memory()) and never
    // freed before the pool; beyond that, buffers come from the heap.
    BufferPool(size_t capacity, size_t kept);

    FrameBuffer take();
    // With room for so many bytes: one of the pool's where that is enough.
    FrameBuffer take(size_t length) { return length <= capacity_ ? take() : allocate(length); }
    static FrameBuffer allocate(size_t capacity);
    size_t capacity() const { return capacity_; }
    // The kept buffers, for registration with the kernel.
    std::vector<iovec> memory() const;

private:
    void give_back(std::byte* memory);

    size_t capacity_;
    std::shared_ptr<std::byte> arena_;
    size_t kept_;
    std::mutex mutex_;
    std::vector<std::byte*> free_;
};

} // namespace drover
