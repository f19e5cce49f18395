// SPDX-License-Identifier: GPL-2.0-or-later
// The destination of a stream: which frames may be applied, and when.
//
// Pure: the replica's adapter asks, waits and does the I/O. Keeps the contiguous watermark
// `applied` and, above it, the LSNs that were applied out of order within the present session.
#pragma once

#include "nbd-proxy/core/frame.h"

#include <map>
#include <string>

namespace drover {

// Not thread-safe: the caller holds one mutex around every call.
class Applier {
public:
    // uuid etc. are the caller's. migration: of the attempt that this replica was prepared for.
    // largest: the largest stream triple that was ever seen, from the record.
    Applier(MigrationId migration, uint64_t generation, StreamId largest)
        : migration_(migration), generation_(generation), stream_(largest) {}

    enum class Admission {
        apply,   // now; call started(), and finished() or failed() after it
        wait,    // until the watermark or the session has changed
        refused, // why says it; EINVAL to the peer
    };

    // An open frame. True: it stands for a newer session than any before: persist stream() before
    // the frame is answered; frames of older sessions are refused from here on.
    struct Opened {
        bool ok = false;
        bool newer = false;
        std::string why;
    };
    Opened open(const FrameHeader& header);

    Admission admit(const FrameHeader& header, std::string* why) const;
    void started(const FrameHeader& header);
    void finished(const FrameHeader& header);
    // Its I/O failed: the session is dead, the source has to open another.
    void failed(const FrameHeader& header);

    // Whether frames of an earlier session are still being applied: `state` waits for them.
    bool older_applying() const;
    bool anything_applying() const { return !applying_.empty(); }

    const StreamId& stream() const { return stream_; }
    Lsn applied() const { return applied_; }
    Lsn durable() const { return durable_; }
    // An fsync ended well that was started when applied() was this.
    void made_durable(Lsn lsn) { durable_ = std::max(durable_, lsn); }

    static constexpr size_t most_ahead = 1 << 17; // frames that were applied above the watermark

private:
    MigrationId migration_;
    uint64_t generation_;
    StreamId stream_;
    bool based_ = false; // the session's base has come
    bool broken_ = false;
    Lsn applied_, durable_;
    std::map<uint64_t, uint64_t> ahead_;  // [first, next) applied above the watermark
    std::map<StreamId, size_t> applying_; // frames under way, by session
};

} // namespace drover
