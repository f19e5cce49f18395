// SPDX-License-Identifier: GPL-2.0-or-later
// Storage that takes whole blocks only makes a small write read, change and write back a block.
// Meanwhile nobody else may write that block, or his bytes are put back to what they were.
#pragma once

#include "common/units.h"

#include <condition_variable>
#include <list>
#include <mutex>

namespace drover {

// Thread-safe. First come, first served, so nobody starves; those who do not overlap never wait,
// nor do two that both write whole blocks.
class EdgeLock {
    struct Holder {
        Extent blocks;
        bool rewrites;
    };

public:
    // Holds the lock until it is destroyed; must not outlive the EdgeLock.
    class Guard {
    public:
        Guard(EdgeLock& lock, std::list<Holder>::iterator holder) : lock_(lock), holder_(holder) {}
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;
        ~Guard() { lock_.release(holder_); }

    private:
        EdgeLock& lock_;
        std::list<Holder>::iterator holder_;
    };

    // blocks: rounded out to whole ones. rewrites: at least one of them is changed in part. Blocks
    // until every earlier holder of these blocks has gone, if that one or this one rewrites.
    [[nodiscard]] Guard take(Extent blocks, bool rewrites);

private:
    void release(std::list<Holder>::iterator holder);

    std::mutex mutex_;
    std::condition_variable gone_;
    unsigned waiting_ = 0;
    std::list<Holder> holders_; // in order of arrival, those who wait included
};

} // namespace drover
