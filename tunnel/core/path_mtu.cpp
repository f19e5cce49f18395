// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/path_mtu.h"

#include <algorithm>

namespace drover::tunnel {

void PathMtu::lost(uint64_t now_ms) {
    if (++tries_ < most_tries) {
        return;
    }
    tries_ = 0;
    if (probed_ > size_) {
        untried_ = probed_ - 1;
    } else if (size_ > base) { // what used to pass does not any more
        untried_ = size_ - 1;
        size_ = base;
    }
    search_again_ms_ = now_ms + retry_ms;
}

std::optional<size_t> PathMtu::probe(uint64_t now_ms) {
    if (now_ms < next_ms_) {
        return std::nullopt;
    }
    if (probed_ != 0) {
        lost(now_ms);
    } else {
        tries_ = 0;
    }
    if (!searching() && untried_ < largest_ && now_ms >= search_again_ms_) {
        untried_ = largest_;
    }
    if (!searching()) {
        probed_ = size_;
    } else if (untried_ == largest_) {
        probed_ = largest_; // most paths take it
    } else {
        probed_ = size_ + (untried_ - size_ + 1) / 2;
    }
    next_ms_ = now_ms + interval_ms;
    return probed_;
}

void PathMtu::answered(size_t size, uint64_t now_ms) {
    if (size > largest_) {
        return;
    }
    size_ = std::max(size_, size);
    if (size >= probed_) {
        probed_ = 0;
        tries_ = 0;
        if (searching()) {
            next_ms_ = now_ms; // the next step at once
        }
    }
}

} // namespace drover::tunnel
