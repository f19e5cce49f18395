// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/applier.h"

#include <fmt/format.h>

namespace drover {

Applier::Opened Applier::open(const FrameHeader& header) {
    if (header.migration != migration_ || header.stream.generation != generation_) {
        return {false, false, "a frame of another migration"};
    }
    if (header.stream < stream_) {
        return {false, false, "a session that is older than one seen before"};
    }
    const bool newer = header.stream > stream_;
    if (newer) {
        stream_ = header.stream;
        based_ = broken_ = false;
    }
    if (header.base) {
        if (based_) {
            return {false, false, "a second base in one session"};
        }
        if (older_applying()) {
            return {false, false, "a base before the state was asked for"};
        }
        // What came out of order in the last session will be sent again.
        ahead_.clear();
        applied_ = *header.base;
        durable_ = std::min(durable_, applied_);
        based_ = true;
    }
    return {true, newer, ""};
}

Applier::Admission Applier::admit(const FrameHeader& header, std::string* why) const {
    if (header.migration != migration_) {
        *why = "a frame of another migration";
        return Admission::refused;
    }
    if (header.stream != stream_) {
        *why = header.stream < stream_ ? "a frame of an older session"
                                       : "a frame of a session that was not opened";
        return Admission::refused;
    }
    if (!based_ || broken_) {
        *why = broken_ ? "the disk failed in this session" : "a frame before the session's base";
        return Admission::refused;
    }
    if (header.first <= applied_ || ahead_.contains(header.first.v)) {
        *why = fmt::format("LSN {} was applied before", header.first.v);
        return Admission::refused;
    }
    // Each takes memory here until the LSNs before it have come, which one slow connection may hold
    // up while many small frames come by the others. LSNs ascend in each connection, so the frame
    // that is missing is read before those of its connection that would wait.
    if (ahead_.size() >= most_ahead && header.first.v != applied_.v + 1) {
        return Admission::wait;
    }
    return applied_ >= header.after ? Admission::apply : Admission::wait;
}

void Applier::started(const FrameHeader& header) {
    ++applying_[header.stream];
}

void Applier::finished(const FrameHeader& header) {
    if (--applying_[header.stream] == 0) {
        applying_.erase(header.stream);
    }
    // A worker of an older session: the source sends it again, so it must not count.
    if (header.stream != stream_) {
        return;
    }
    ahead_.emplace(header.first.v, header.next.v);
    while (!ahead_.empty() && ahead_.begin()->first == applied_.v + 1) {
        applied_ = Lsn(ahead_.begin()->second - 1);
        ahead_.erase(ahead_.begin());
    }
}

void Applier::failed(const FrameHeader& header) {
    if (--applying_[header.stream] == 0) {
        applying_.erase(header.stream);
    }
    broken_ |= header.stream == stream_;
}

bool Applier::older_applying() const {
    return !applying_.empty() && applying_.begin()->first < stream_;
}

} // namespace drover
