// SPDX-License-Identifier: GPL-2.0-or-later
// cache=none for a file: what is written goes to the disk soon and then leaves the page cache.
#pragma once

#include "common/units.h"

#include <deque>
#include <mutex>

namespace drover {

// Thread-safe. Keeps a few MiB of written ranges under writeback; when there are more, the writer
// waits for the oldest, which also bounds the dirty memory. fd is borrowed.
class WritebackWindow {
public:
    explicit WritebackWindow(int fd) : fd_(fd) {}

    // After where was written. Returns 0, or the errno of a writeback that failed: fd's
    // next fdatasync will no longer report it.
    [[nodiscard]] int wrote(Extent where);
    // After where was read.
    void read(Extent where);

private:
    int fd_;
    std::mutex mutex_;
    std::deque<Extent> ranges_;
    uint64_t bytes_ = 0;
};

} // namespace drover
