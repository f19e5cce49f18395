// SPDX-License-Identifier: GPL-2.0-or-later
// Where a disk goes whose VM stayed when it moved (--disk-only): the way to
// its new owner, from `forward` or a restart until the process ends.
#pragma once

#include "nbd-proxy/disk_context.h"
#include "nbd-proxy/reconnecting_client.h"

#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <thread>

namespace drover {

// Thread-safe but for connect() and end(), which are called with DiskContext::control held.
class Forwarding {
public:
    explicit Forwarding(const DiskContext& context) : context_(context) {}
    // Stops, and waits for its thread. DiskContext::control must be free.
    ~Forwarding();
    Forwarding(const Forwarding&) = delete;
    Forwarding& operator=(const Forwarding&) = delete;

    // While the disk is being handed over: reaches the owner that it will have, so that connect()
    // need not wait for that. Does not wait. The key's file is removed.
    void begin(NbdClientOptions to, std::string export_name);
    // The handover has not come about.
    void take_back();
    // To the new owner, now, unless it was connected to before; from then on the disk's requests go
    // there. Throws Error.
    void connect();
    // The same from a thread of its own, again and again until the new owner answers: after a
    // restart, and until then requests wait. Once at most.
    void keep_connecting();
    // The disk has been taken back: requests that still wait for the other owner end as cancelled.
    void end();
    // What was answered is safe at the new owner. Waits for it for as long as it takes; nothing to
    // do where none was connected to. Throws Error.
    void flush();
    // Ends the requests that wait for the owner, and a try to connect.
    void stop();

private:
    struct Early {
        std::atomic<bool> give_up{false};
        std::future<std::unique_ptr<NbdClient>> client;
        ~Early() { give_up = true; }
    };
    std::unique_ptr<NbdClient> dial(const std::atomic<bool>& give_up);
    std::unique_ptr<NbdClient> early();
    std::shared_ptr<ReconnectingClient> owner() const;

    const DiskContext& context_;
    mutable std::mutex mutex_; // below; held for moments
    std::condition_variable stopping_;
    bool stopped_ = false;
    std::shared_ptr<ReconnectingClient> owner_; // null: not connected yet
    std::shared_ptr<Early> early_;
    std::thread thread_;
};

// The export at the new owner that a source with this record asks for.
std::string forward_export(const Record& record);

} // namespace drover
