// SPDX-License-Identifier: GPL-2.0-or-later
// Bulk reads by io_uring into registered buffers. One thread owns a ring.
#pragma once

#include "common/unique_fd.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <liburing.h>

#include <sys/uio.h>

namespace drover {

class ReaderRing {
public:
    struct Completion {
        uint64_t cookie = 0;
        int result = 0; // bytes, or -errno
    };

    // registered: memory that reads may land in fast (registered with the kernel; if the limit on
    // locked memory forbids that, reads into it work all the same). Throws Error(io).
    ReaderRing(unsigned entries, std::span<const iovec> registered);
    ~ReaderRing();
    ReaderRing(const ReaderRing&) = delete; // the kernel holds its address
    ReaderRing& operator=(const ReaderRing&) = delete;

    // The memory has to stay until the completion is there.
    void read(int fd, void* memory, uint32_t length, uint64_t offset, uint64_t cookie);
    // Appends what has completed; does not wait.
    void reap(std::vector<Completion>& done);
    // Becomes readable with a completion; for poll.
    int event_fd() const { return event_.get(); }
    unsigned under_way() const { return under_way_; }

private:
    io_uring ring_{};
    UniqueFd event_;
    std::vector<iovec> registered_; // empty: not registered
    unsigned under_way_ = 0;
};

} // namespace drover
