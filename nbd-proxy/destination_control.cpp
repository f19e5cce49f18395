// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/destination_control.h"

#include "common/error.h"
#include "common/secrets.h"

namespace drover {
namespace {

std::array<std::byte, 16> boot_id() {
    return uuid_bytes(read_whole_file("/proc/sys/kernel/random/boot_id").value_or(""));
}

} // namespace

DestinationControl::DestinationControl(const DiskContext& context, Forwarding& forwarding)
    : context_(context), forwarding_(forwarding), instance_(bytes_of<16>(random_bytes(16))) {}

void DestinationControl::resume() {
    const Record record = context_.record.get();
    unconfirmed_ = is_unconfirmed(record);
    if (record.role == Role::replica &&
        (record.stage == Stage::receiving || record.stage == Stage::handed_over)) {
        make_replica();
    }
}

rpc::Json DestinationControl::prepare(const rpc::Json& params) {
    rpc::only_params(params, {"migration", "generation", "uuid", "block_size"});
    const std::lock_guard one(context_.control);
    const uint32_t own = context_.options.block_size;
    if (const auto block_size = rpc::optional_uint_param(params, "block_size");
        block_size && *block_size != own) {
        throw Error(
            ErrorKind::usage,
            fmt::format("the source's block size is {}, this one's {}: start it with block-size={}",
                        *block_size,
                        own,
                        *block_size));
    }
    const ReplicaRequest request{.migration = migration_param(params),
                                 .generation = rpc::uint_param(params, "generation"),
                                 .uuid = rpc::string_param(params, "uuid"),
                                 .refusal_token = random_hex(32)};
    accept(begin_replica(context_.record.get(), request));
    // What still comes of an earlier stream must not get into this one's image or record.
    close_replica();
    forget(); // and no hash of an earlier time may be told
    const Record replica = context_.record.update(
        [&](const Record& before) { return accept(begin_replica(before, request)); });
    // An image that left here comes back under its own name.
    context_.record.unfence_image();
    make_replica();
    return {{"refusal_hash", replica.refusal_hash}, {"empty", is_empty()}};
}

// Whether it is known that there is nothing but zeroes: then nothing of it is worth a comparison.
bool DestinationControl::is_empty() const {
    const uint64_t size = context_.backend.size();
    for (uint64_t at = 0; at < size;) {
        if (!context_.backend.features().can_extents) {
            return false;
        }
        const BackendExtent first = context_.backend.extents({at, size - at}, true).at(0);
        if (!first.zero) {
            return false;
        }
        at += first.length;
    }
    return true;
}

void DestinationControl::close_replica() {
    std::shared_ptr<Replica> replica;
    {
        const std::lock_guard lock(mutex_);
        replica.swap(replica_);
    }
    if (replica) {
        replica->close();
    }
}

void DestinationControl::make_replica() {
    try {
        context_.backend.drop_cache(); // before anybody asks for hashes
    } catch (const Error&) {
        // Every later flush fails too, so nothing of it will count.
    }
    const Record now = context_.record.get();
    const ReplicaIdentity identity{.uuid = uuid_bytes(now.uuid),
                                   .boot = boot_id(),
                                   .instance = instance_,
                                   .migration = parse_migration_id(now.migration).value(),
                                   .generation = now.generation,
                                   .block_size = context_.options.block_size,
                                   .largest = now.largest_stream};
    // Beside control calls: each looks at the record and changes it in one step.
    DiskRecord& record = context_.record;
    const auto voided = [identity](const Record& before) {
        return accept(
            receive_void(before, drover::to_string(identity.migration), identity.generation));
    };
    const ReplicaEvents events{
        .session =
            [&record, first = true](const StreamId& stream) mutable {
                record.update([&](const Record& before) {
                    return receive_session(first ? at_first_session(before) : before, stream);
                });
                first = false;
            },
        .base =
            [&record](Lsn base) {
                record.update([&](const Record& before) { return receive_base(before, base); });
            },
        .consistency =
            [&record](bool consistent) {
                record.update([&](Record next) {
                    next.consistent = consistent;
                    return next;
                });
            },
        .handover =
            [&record, identity](Lsn lsn, const TokenHash& hash) {
                const std::string hex =
                    to_hex({reinterpret_cast<const char*>(hash.data()), hash.size()});
                record.update([&](const Record& before) {
                    return accept(receive_handover(before,
                                                   drover::to_string(identity.migration),
                                                   identity.generation,
                                                   lsn,
                                                   hex));
                });
            },
        .voided = [&record, voided] { record.update(voided); },
    };
    const auto replica =
        std::make_shared<Replica>(context_.backend, identity, events, context_.options.client_gone);
    const std::lock_guard lock(mutex_);
    replica_ = replica;
}

rpc::Json DestinationControl::promote(const rpc::Json& params) {
    rpc::only_params(params, {"migration", "token", "force"});
    const std::lock_guard one(context_.control);
    const std::string migration = rpc::string_param(params, "migration");
    const bool by_force = rpc::bool_param(params, "force", false);
    const std::string token = by_force ? "" : rpc::string_param(params, "token");
    const auto promoted = [&](const Record& record) {
        return accept(by_force ? drover::force(record, migration)
                               : drover::promote(record, migration, token));
    };
    const Record previous = context_.record.get();
    const bool before = may_write(previous);
    promoted(previous);
    // First, as they may fail.
    const auto taken = std::make_shared<HashSnapshot>(
        context_.backend, context_.geometry(), hash_seed(uuid_bytes(previous.uuid)));
    const auto written = std::make_shared<WrittenBlocks>(context_.geometry());
    if (const auto closing = replica()) {
        closing->close();
    }
    if (!before) {
        // A flush of the replica's may have failed since the handover: it must not be the owner's
        // to find out.
        context_.backend.flush();
    }
    // Again: a frame that was under way may have taken the handover back.
    context_.record.update(promoted);
    if (before) {
        confirm();
    } else {
        {
            const std::lock_guard lock(mutex_);
            snapshot_ = taken;
        }
        context_.disk.set_snapshot(taken);
        context_.disk.set_written(written);
        // Its client may have stayed here when it left: from now on it is served from here again.
        context_.disk.take_back();
        forwarding_.end();
    }
    return rpc::Json::object();
}

void DestinationControl::confirm() {
    if (unconfirmed_.exchange(false)) {
        context_.disk.release();
    }
}

rpc::Json DestinationControl::did_not_run(const rpc::Json& params) {
    rpc::only_params(params, {"migration"});
    const std::lock_guard one(context_.control);
    const std::string migration = rpc::string_param(params, "migration");
    const auto not_run = [&](const Record& record) {
        return accept(drover::did_not_run(record, migration));
    };
    not_run(context_.record.get());
    context_.disk.hold(); // nothing comes after the look
    unconfirmed_ = true;
    const std::shared_ptr<HashSnapshot> since = snapshot();
    if (!since || since->touched()) {
        confirm();
        throw Error(ErrorKind::refused,
                    "the disk was written after it was promoted, or by a process that is gone: the "
                    "VM may have run");
    }
    context_.record.update(not_run);
    return rpc::Json::object();
}

rpc::Json DestinationControl::refuse(const rpc::Json& params) {
    rpc::only_params(params, {"migration"});
    const std::lock_guard one(context_.control);
    const std::string migration = rpc::string_param(params, "migration");
    const std::string token = random_hex(32);
    const auto refused = [&](const Record& record) {
        return accept(drover::refuse(record, migration, token));
    };
    const Record before = context_.record.get();
    refused(before);
    if (migration == before.migration && !refusal_token_of(before, migration)) {
        close_replica();
        if (may_write(before)) {
            context_.disk.hold(); // it was promoted, and the VM could not be run
        } // else it is held, or its client is served from where the disk is: that goes on
        unconfirmed_ = false;
    }
    return {
        {"refusal_token", refusal_token_of(context_.record.update(refused), migration).value()}};
}

void DestinationControl::forget() {
    {
        const std::lock_guard lock(mutex_);
        replica_.reset();
        snapshot_.reset();
    }
    context_.disk.set_snapshot(nullptr);
}

std::shared_ptr<Replica> DestinationControl::replica() const {
    const std::lock_guard lock(mutex_);
    return replica_;
}

std::shared_ptr<HashSnapshot> DestinationControl::snapshot() const {
    const std::lock_guard lock(mutex_);
    return snapshot_;
}

rpc::Json DestinationControl::status(const Record& now) const {
    const std::shared_ptr<Replica> receiving = replica();
    if (!receiving) {
        return {};
    }
    const Replica::Progress progress = receiving->progress();
    return {{"consistent", now.consistent},
            {"handed_over", now.stage == Stage::handed_over},
            {"applied", progress.applied.v},
            {"durable", progress.durable.v},
            {"received_bytes", progress.received_bytes}};
}

} // namespace drover
