// SPDX-License-Identifier: GPL-2.0-or-later
// The VM's disk as its clients see it. Idle, a request goes straight to the
// backend; while a stream runs, every change is reported to the source under its range lock; and at
// a switchover changes are held, until they go on here or are forwarded to the new owner.
#pragma once

#include "nbd-proxy/backend.h"
#include "nbd-proxy/client_gone.h"
#include "nbd-proxy/core/written_blocks.h"
#include "nbd-proxy/hash_snapshot.h"
#include "nbd-proxy/tracked.h"

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>

namespace drover {

// Thread-safe. Requests block the calling thread and throw Error with the errno for the client.
class Disk {
public:
    // The backend outlives the disk. held: changes wait until release() (a replica, a fenced
    // source).
    Disk(Backend& backend, bool held, ClientGone gone = {})
        : backend_(backend), client_gone_(std::move(gone)), direct_(!held), held_(held) {}
    Disk(const Disk&) = delete;
    Disk& operator=(const Disk&) = delete;

    // --- clients
    void read(void* data, Extent where);
    // client: of which connection, if that is known (a throttle is fair to each).
    void write(const void* data, Extent where, bool fua, Throttle::ClientId client = 0);
    void flush();
    void trim(Extent where, bool fua);
    void zero(Extent where, bool may_punch, bool fast, bool fua);
    void cache(Extent where);
    std::vector<BackendExtent> extents(Extent where, bool one);

    // --- control
    // Starts to report changes. Returns once no request is under way that was not reported.
    void start_tracking(std::shared_ptr<Tracked> tracked);
    void stop_tracking();
    // Holds new changes and waits for those under way. Reads go on.
    void hold();
    void release();
    // From now on every request goes there; requests that were held too. What was under way here
    // has ended.
    void forward_to(std::shared_ptr<Backend> owner);
    // Releases, and ends the forwarding: from now on every request is done here, those too that the
    // other owner ends as cancelled.
    void take_back();
    // Announces every change to it first, while it is set. The clients' requests are held, or none
    // has come yet.
    void set_snapshot(std::shared_ptr<HashSnapshot> snapshot);
    // Marks every change in it from now on. Changes are held meanwhile.
    void set_written(std::shared_ptr<WrittenBlocks> written);
    // Null if they are not marked.
    std::shared_ptr<WrittenBlocks> written() const;
    // Ends every held request, and each later one, with ESHUTDOWN.
    void close();

private:
    // Counts changes on the direct path, and reads and writes in all. Sharded, so that two threads
    // do not share a cache line.
    struct alignas(64) Shard {
        std::atomic<uint64_t> under_way{0};
        std::atomic<uint64_t> requests{0};
    };
    class Direct;
    struct Route;

    Shard& shard();
    Route route(bool change, bool waited);
    void arrived();
    void leave_direct();
    bool taken_back(const Backend* owner);
    Backend& place(const Route& way);
    template <typename Request>
    auto routed(bool change, Request&& request);
    template <typename Here, typename There, typename Report>
    void change(Extent where,
                std::optional<Throttle::ClientId> paced,
                Here&& here,
                There&& there,
                Report&& report);

    Backend& backend_;
    const ClientGone client_gone_;
    std::atomic<bool> direct_;
    std::atomic<bool> forwarding_{false}; // owner_ is set
    std::array<Shard, 16> shards_;

    mutable std::mutex mutex_;
    std::condition_variable gate_;
    bool held_;
    bool closed_ = false;
    uint64_t under_way_ = 0; // changes that are not on the direct path
    void settle_direct();

    std::shared_ptr<Tracked> tracked_;
    std::shared_ptr<HashSnapshot> snapshot_;
    std::shared_ptr<WrittenBlocks> written_; // also read on the direct path
    std::shared_ptr<Backend> owner_;         // set: forwarding
};

} // namespace drover
