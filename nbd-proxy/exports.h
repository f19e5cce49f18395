// SPDX-License-Identifier: GPL-2.0-or-later
// What an NBD client may open (docs/design.md, "Wire format"): one object for each
// connection.
#pragma once

#include "nbd-proxy/disk.h"
#include "nbd-proxy/replica.h"

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

namespace drover {

// Thread-safe. Calls block, and throw Error with the errno for the client.
class Export {
public:
    virtual ~Export() = default;

    virtual uint64_t size() const = 0;
    // What clients may do and are advised to.
    virtual Backend::Features features() const = 0;
    virtual bool can_write() const = 0;
    virtual bool can_fua() const { return can_write(); }
    virtual bool can_flush() const { return can_write(); }

    virtual void read(void* data, Extent where) = 0;
    virtual void write(const void* data, Extent where, bool fua) = 0;
    virtual void flush() = 0;
    virtual void trim(Extent where, bool fua) = 0;
    virtual void zero(Extent where, bool may_punch, bool fast, bool fua) = 0;
    virtual void cache(Extent where) = 0;
    virtual std::vector<BackendExtent> extents(Extent where, bool one) = 0;
};

// The disk itself.
std::unique_ptr<Export> make_disk_export(Disk& disk, const Backend& backend, bool read_only);
// Lets one forwarding source in at a time: a connection with a larger number shuts out those before
// it, and starts when nothing of theirs is under way (their writes must not come after its own).
class ForwardGate {
public:
    // Throws Error(refused) for a number that is smaller than one seen before.
    void open(uint64_t number);
    // Throws Error, errno ESHUTDOWN, once a larger number has been opened.
    void enter(uint64_t number);
    void leave();

private:
    std::mutex mutex_;
    std::condition_variable idle_;
    uint64_t number_ = 0;
    uint64_t under_way_ = 0;
};
// `forward/MIGRATION/G/N`: the disk, for the connections of number N. Until is_owner() has once
// been true every request fails with ESHUTDOWN.
std::unique_ptr<Export> make_forward_export(std::unique_ptr<Export> disk,
                                            std::shared_ptr<ForwardGate> gate,
                                            uint64_t number,
                                            std::function<bool()> is_owner);
// `replica`: each write is a frame.
std::unique_ptr<Export> make_replica_export(std::shared_ptr<Replica> replica);
// `state`: 512 bytes, made anew for each read.
std::unique_ptr<Export> make_state_export(std::shared_ptr<Replica> replica);
// `hashes`: 16 bytes a block; of the snapshot if there is one, else as the disk reads now, and of
// what is marked in `written`, if that is not null, zeroes.
std::unique_ptr<Export> make_hashes_export(Backend& backend,
                                           BlockGeometry geometry,
                                           uint64_t seed,
                                           std::shared_ptr<HashSnapshot> snapshot,
                                           std::shared_ptr<WrittenBlocks> written);

} // namespace drover
