// SPDX-License-Identifier: GPL-2.0-or-later
// One disk with everything around it: its storage, its record, its clients'
// requests, and the control methods of either side of a migration.
#pragma once

#include "common/json_rpc.h"
#include "common/privilege.h"
#include "nbd-proxy/destination_control.h"
#include "nbd-proxy/disk.h"
#include "nbd-proxy/disk_context.h"
#include "nbd-proxy/disk_record.h"
#include "nbd-proxy/exports.h"
#include "nbd-proxy/forwarding.h"
#include "nbd-proxy/source_control.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace drover {

// Thread-safe, once start() has returned. Control calls throw Error (docs/control.md has their
// codes); they exclude each other, except that `quiesce` is interrupted by `cancel`, and `status`
// and `verify` never wait for another. Owns all that the files of each side borrow: the parts below
// are made in their order and go in the reverse one, when nobody calls any more.
class Engine {
public:
    // Takes the image and its record. Throws Error.
    explicit Engine(EngineOptions options);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // Before start(): what the process still has to open.
    FileAccess files(const std::string& control_path) const;

    // Connects what needs threads: after nbdkit's fork, before anything else. Throws Error.
    void start();

    // A connection of a client. remote: not over a unix socket. Throws Error for an export that is
    // not offered (to it). What it returns does not outlive the engine.
    std::unique_ptr<Export> open(const std::string& name, bool read_only, bool remote, bool tls);

    // One of the methods of docs/control.md; `subscribe` is the control server's own.
    rpc::Json call(const std::string& method, const rpc::Json& params);
    rpc::Json status();
    // Makes control calls that wait for the other side give up, before the process ends: the
    // callers are answered with an error.
    void interrupt();
    // Called from any thread when something in `status` has changed that a subscriber should see at
    // once.
    void on_change(std::function<void()> changed);

    void client_came() { ++clients_; }
    void client_left() { --clients_; }

private:
    using Json = rpc::Json;

    std::unique_ptr<Export> open_for_peer(const std::string& name, bool read_only);
    Json finish(const Json& params);
    Json verify(const Json& params);
    std::shared_ptr<WrittenBlocks> written_since_promotion(const Record& now) const;
    Json shutdown(const Json& params);
    void changed();

    const EngineOptions options_;
    std::atomic<unsigned> clients_{0};
    const std::shared_ptr<ForwardGate> forward_gate_ = std::make_shared<ForwardGate>();

    std::mutex change_mutex_; // changed_; taken last
    std::function<void()> changed_;

    std::mutex control_mutex_; // one control call at a time; taken before the others
    std::optional<DiskRecord>
        record_; // nullopt: plain serving; then there is none of the last four
    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Disk> disk_;
    std::optional<DiskContext> context_;
    std::unique_ptr<Forwarding> forwarding_;
    std::unique_ptr<SourceControl> source_;
    std::unique_ptr<DestinationControl> destination_;
};

} // namespace drover
