// SPDX-License-Identifier: GPL-2.0-or-later
// The control methods of a migration's source (docs/control.md), and the stream
// that they drive.
#pragma once

#include "nbd-proxy/disk_context.h"
#include "nbd-proxy/forwarding.h"
#include "nbd-proxy/sender.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace drover {

// Thread-safe. The control methods throw Error with the codes of docs/control.md and exclude each
// other and those of the destination's side, except that `quiesce` is interrupted by `cancel`.
class SourceControl {
public:
    // Also forgets the keys of a process that was killed.
    SourceControl(const DiskContext& context, Forwarding& forwarding);
    ~SourceControl();
    SourceControl(const SourceControl&) = delete;
    SourceControl& operator=(const SourceControl&) = delete;

    rpc::Json replicate(const rpc::Json& params);
    rpc::Json set(const rpc::Json& params);
    rpc::Json quiesce(const rpc::Json& params);
    rpc::Json fence(const rpc::Json& params);
    rpc::Json forward(const rpc::Json& params);
    rpc::Json cancel(const rpc::Json& params);
    rpc::Json unfence(const rpc::Json& params);
    rpc::Json supersede(const rpc::Json& params);
    // A quiesce or the start of a stream that waits, with the control of the disk in its hands or
    // not, gives up.
    void interrupt();
    // Ends the stream, whatever it is at; the disk goes on (or stays held, as it was). With
    // DiskContext::control held, or nobody else left.
    void end_stream();

    // Of a fenced disk, beside all else, as a switchover has no time for it: who writes the image
    // without asking us finds none. What is in the way of it `finish` tells. With
    // DiskContext::control held, or nobody else there yet.
    void set_aside();

    // `replication` of the status, null where there is none; now: the record. Does not wait.
    rpc::Json status(const Record& now) const;

private:
    std::shared_ptr<Sender> sender() const;
    void
    wait_for_handover(Tracked& tracked, std::chrono::milliseconds timeout, const Sender& sender);

    const DiskContext& context_;
    Forwarding& forwarding_;

    mutable std::mutex mutex_; // the next two; held for moments
    std::shared_ptr<Sender> sender_;
    std::string quiescing_; // the id of the quiesce under way or done

    // Under DiskContext::control.
    std::shared_ptr<Tracked> tracked_;
    bool held_ = false; // by a quiesce or fence of ours, until it is taken back
    std::string stream_key_file_;
    std::thread aside_;

    std::atomic<bool> cancelled_{false}; // a quiesce that waits gives up
};

} // namespace drover
