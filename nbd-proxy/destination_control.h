// SPDX-License-Identifier: GPL-2.0-or-later
// The control methods of a migration's destination (docs/control.md), and the
// replica that they are about.
#pragma once

#include "nbd-proxy/disk_context.h"
#include "nbd-proxy/forwarding.h"
#include "nbd-proxy/hash_snapshot.h"
#include "nbd-proxy/replica.h"

#include <atomic>
#include <memory>
#include <mutex>

namespace drover {

// Thread-safe. The control methods throw Error with the codes of docs/control.md and exclude each
// other and those of the source's side; nothing else here waits.
class DestinationControl {
public:
    DestinationControl(const DiskContext& context, Forwarding& forwarding);

    // After a restart: the replica that the record says there is.
    void resume();
    // The disk was promoted, and then started anew before its source was known to have heard of it:
    // should the source have been forced to go on without an answer, both would write. So it holds
    // its writes until somebody asks for `promote` or `finish` again.
    static bool is_unconfirmed(const Record& record) {
        return may_write(record) && record.stage == Stage::promoted;
    }

    rpc::Json prepare(const rpc::Json& params);
    rpc::Json promote(const rpc::Json& params);
    rpc::Json did_not_run(const rpc::Json& params);
    rpc::Json refuse(const rpc::Json& params);
    // The migration is over: no replica any more, hashes are those of the disk as it is. With
    // DiskContext::control held.
    void forget();
    bool unconfirmed() const { return unconfirmed_; }
    // The source knows: whoever asked has seen to that. With DiskContext::control held.
    void confirm();

    // No frame is taken, and nothing is recorded by one, from here on. With DiskContext::control
    // held.
    void close_replica();

    // What clients are given; null where there is none. Who has one may keep it.
    std::shared_ptr<Replica> replica() const;
    // Of the disk at its promotion.
    std::shared_ptr<HashSnapshot> snapshot() const;
    // `replica` of the status, null where there is none; now: the record.
    rpc::Json status(const Record& now) const;

private:
    void make_replica();
    bool is_empty() const;

    const DiskContext& context_;
    Forwarding& forwarding_;
    const std::array<std::byte, 16> instance_; // tells this process from others
    mutable std::mutex mutex_;                 // below; held for moments
    std::shared_ptr<Replica> replica_;
    std::shared_ptr<HashSnapshot> snapshot_;
    std::atomic<bool> unconfirmed_{false}; // and so the disk is held
};

} // namespace drover
