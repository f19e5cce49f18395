// SPDX-License-Identifier: GPL-2.0-or-later
// O_DIRECT with no alignment asked of the caller.
#pragma once

#include "nbd-proxy/edge_lock.h"

#include <functional>
#include <string>

namespace drover {

// Thread-safe. fd is borrowed; its size must be a multiple of alignment (a power of two).
// Every change of the content must go through one AlignedIo. Throws Error(io).
class AlignedIo {
public:
    AlignedIo(int fd, uint32_t alignment, std::string name);

    void read(void* data, Extent where);
    void write(const void* data, Extent where, bool durable);
    // Makes the range zero: calls whole_blocks for the part of it that is whole blocks, writes
    // the edges. Nothing else changes these blocks meanwhile. False if whole_blocks answered so:
    // then the edges are left as they are.
    bool zero(Extent where, const std::function<bool(Extent)>& whole_blocks);

private:
    void rewrite(const void* data, Extent where, bool durable);
    void write_aligned(const std::byte* data, Extent where, bool durable);

    int fd_;
    uint32_t alignment_;
    std::string name_;
    EdgeLock edges_;
};

} // namespace drover
