// SPDX-License-Identifier: GPL-2.0-or-later
// The process that serves a disk, at either side: what disk.cpp and engine.cpp do, in the
// same steps, around the same record.
#pragma once

#include "test/sim/call.h"
#include "test/sim/replica.h"
#include "test/sim/stream.h"

#include <functional>

namespace drover::sim {

// A request of a guest, from when it is sent until it is answered: by the process that it
// was sent to, or by a later one.
struct GuestRequest {
    enum class Kind { write, zero, trim, flush } kind;
    Extent where;
    uint64_t id;
    bool fails;                  // the disk will say EIO
    std::vector<std::byte> data; // of a write
    bool done = false;
    bool failed = false;
};

class Plugin : public std::enable_shared_from_this<Plugin> {
public:
    Plugin(World& world, Disk& disk);
    ~Plugin();
    Plugin(const Plugin&) = delete;
    Plugin& operator=(const Plugin&) = delete;

    const uint64_t instance;
    const Scheduler::Owner owner;
    size_t site() const { return disk_.site; }
    bool loaded() const { return loaded_; }
    const Record& record() const { return record_; }
    // Promoted by a process that has ended, and not confirmed since.
    bool unconfirmed() const { return unconfirmed_; }
    // RecordStore::open, then Engine::start.
    Task<> start();

    // --- the guest
    void submit(std::shared_ptr<GuestRequest> request);
    // Requests that have not got as far as the disk.
    unsigned waiting() const { return waiting_; }

    // --- control; each throws Error. Of the real methods what matters of their parameters.
    Task<> prepare(ReplicaRequest request);
    Task<> replicate(std::string migration, uint64_t generation);
    struct Quiesced {
        std::string id, token_hash;
        Lsn lsn;
    };
    Task<Quiesced> quiesce(bool hold, std::string token_hash, uint64_t patience);
    Task<std::string> fence(FenceRequest request);
    Task<> cancel(std::string quiesce);
    Task<> unfence(std::string refusal_token);
    // No token: by force.
    Task<> promote(std::string migration, std::optional<std::string> token);
    Task<> did_not_run(std::string migration);
    // unfence by force
    Task<> force(std::string migration);
    Task<> supersede(std::string migration, uint64_t generation);
    Task<std::string> refuse(std::string migration);
    Task<> finish(std::string migration);

    // --- links
    std::shared_ptr<Replica> replica() const { return replica_; }
    const std::shared_ptr<Stream>& stream() const { return stream_; }
    const std::shared_ptr<TrackedDisk>& tracked() const { return tracked_; }

private:
    using Step = std::function<Record(const Record&)>;

    Task<> serve(std::shared_ptr<GuestRequest> request);
    Task<> change(std::shared_ptr<GuestRequest> request);
    Task<> change_tracked(std::shared_ptr<GuestRequest> request,
                          std::shared_ptr<TrackedDisk> tracked);
    Task<> do_locally(GuestRequest& request);
    Task<> start_tracking(std::shared_ptr<TrackedDisk> tracked);
    Task<> hold();
    void release() { held_ = false; }
    void confirm();
    void stop_stream();
    Task<> close_replica();
    void make_replica();
    Task<> update(Step step);
    Task<> save(Record next);

    World& world_;
    Disk& disk_;
    Record record_;
    bool loaded_ = false;
    bool saving_ = false;  // record_mutex_
    bool control_ = false; // control_mutex_: a call is being carried out
    bool held_ = true;
    unsigned waiting_ = 0, under_way_ = 0;
    bool cancelled_ = false, quiesce_held_ = false;
    // Promoted, and nobody is to write it before somebody has asked for `promote` or `finish` again;
    // promoted by this process, and not written since.
    bool unconfirmed_ = false, untouched_ = false;
    std::shared_ptr<TrackedDisk> tracked_;
    std::shared_ptr<Stream> stream_;
    std::shared_ptr<Replica> replica_;
};

} // namespace drover::sim
