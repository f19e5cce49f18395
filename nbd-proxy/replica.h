// SPDX-License-Identifier: GPL-2.0-or-later
// The receiving end of a stream: applies frames to the image in the order that
// the core allows, and answers `replica`, `state` and `hashes`.
#pragma once

#include "nbd-proxy/backend.h"
#include "nbd-proxy/client_gone.h"
#include "nbd-proxy/core/applier.h"

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <span>

namespace drover {

// What the record has to know, durably, before a frame is answered. Called with everything up to
// the mark on disk, by one thread at a time; throws Error, and then the frame fails.
struct ReplicaEvents {
    std::function<void(const StreamId&)> session; // the largest seen so far
    std::function<void(Lsn)> base;                // everything above it is applied again
    std::function<void(bool consistent)> consistency;
    std::function<void(Lsn, const TokenHash&)> handover;
    std::function<void()> voided;
};

struct ReplicaIdentity {
    std::array<std::byte, 16> uuid{}, boot{}, instance{};
    MigrationId migration{};
    uint64_t generation = 0;
    uint32_t block_size = 0;
    StreamId largest;
};

// Thread-safe; calls block their thread. Errors are Error with the errno for the peer: EINVAL for a
// frame that is refused, ESHUTDOWN once closed, else what the image's storage said.
class Replica {
public:
    // gone: asked by those that wait for other frames, which may never come.
    Replica(Backend& image,
            const ReplicaIdentity& identity,
            ReplicaEvents events,
            ClientGone gone = {});

    // A frame as it came. With fua: everything up to its last LSN is durable when this returns.
    void apply(std::span<const std::byte> frame, bool fua);
    // Everything that was answered before is durable.
    void flush();
    // Waits until no worker of an older session is left.
    std::array<std::byte, state_size> state();

    // No frame is applied from now on; returns when none is being applied, and no event will come.
    void close();

    struct Progress {
        Lsn applied, durable;
        uint64_t received_bytes = 0;
    };
    Progress progress();

private:
    void open_session(const FrameHeader& header);
    void run(const DecodedFrame& frame);
    void wait(std::unique_lock<std::mutex>& lock);
    void make_durable(Lsn up_to);

    Backend& image_;
    const ReplicaIdentity identity_;
    const ReplicaEvents events_;
    const ClientGone client_gone_;
    std::atomic<uint64_t> received_bytes_{0};

    std::mutex mutex_;
    std::condition_variable moved_; // the watermark, the session, or what is under way
    Applier applier_;
    bool closed_ = false;
    unsigned flushing_ = 0;
    uint64_t openings_ = 0;    // steps of sessions that were opened
    int failure_ = 0;          // errno of the first frame of the session that failed
    std::mutex session_mutex_; // one new session at a time; before mutex_
};

} // namespace drover
