// SPDX-License-Identifier: GPL-2.0-or-later
// The control methods of a plugin: engine.cpp, step by step.
#include "common/secrets.h"
#include "test/sim/plugin.h"

namespace drover::sim {
namespace {

// control_mutex_: one method at a time. Named, since it is held by a coroutine.
class Guard {
public:
    explicit Guard(bool& busy) : busy_(busy) { busy_ = true; }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    ~Guard() { busy_ = false; }

private:
    bool& busy_;
};

TokenHash bytes_of(const std::string& hex) {
    TokenHash hash{};
    const std::string bytes = from_hex(hex).value();
    std::memcpy(hash.data(), bytes.data(), std::min(hash.size(), bytes.size()));
    return hash;
}

} // namespace

// --- source

Task<> Plugin::replicate(std::string migration, uint64_t generation) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    if (tracked_) {
        throw Error(ErrorKind::state, "a replication is under way: `cancel` it first");
    }
    const bool again = record_.migration == migration;
    const Step begin = [&](const Record& record) {
        return accept(begin_attempt(record, migration, generation));
    };
    co_await update(begin);
    if (again) {
        world_.hit(Probe::stream_again);
    }
    Source::Limits limits = world_.plan.limits;
    limits.compare_first = !world_.plan.plain && world_.random.chance(50);
    auto tracked = std::make_shared<TrackedDisk>(
        world_.plan.disks[disk_.index], world_.plan.granularity, limits);
    tracked->source.start(parse_migration_id(migration).value(),
                          {record_.generation, record_.stream_counter, 0});
    cancelled_ = false;
    stream_ =
        std::make_shared<Stream>(world_, disk_, world_.disk(1 - disk_.site, disk_.index), tracked);
    std::optional<Error> failure;
    try {
        co_await start_tracking(tracked);
        co_await stream_->start();
    } catch (const Error& error) {
        failure = error;
    }
    if (failure) {
        stop_stream();
        const Step cancelled = [](const Record& record) { return accept(drover::cancel(record)); };
        co_await update(cancelled);
        throw *failure;
    }
}

void Plugin::stop_stream() {
    stream_.reset();
    tracked_.reset();
    cancelled_ = true;
}

Task<Plugin::Quiesced> Plugin::quiesce(bool hold_it, std::string token_hash, uint64_t patience) {
    const std::string id = world_.secret();
    std::shared_ptr<TrackedDisk> tracked;
    std::shared_ptr<Stream> stream;
    {
        const auto free = [this] { return loaded_ && !control_; };
        co_await world_.until(free);
        const Guard one(control_);
        if (!tracked_ || !stream_) {
            throw Error(ErrorKind::state, "no replication is under way");
        }
        tracked = tracked_;
        stream = stream_;
        QuiesceToken token;
        if (token_hash.empty()) {
            token.token = world_.secret();
        }
        token.hash = token_hash;
        const Step quiesced = [&](const Record& record) {
            return accept(drover::quiesce(record, id, token));
        };
        co_await update(quiesced);
        if (hold_it) {
            co_await hold();
            quiesce_held_ = true;
        }
        tracked->source.begin_handover(bytes_of(record_.token_hash));
        tracked->source.settle(world_.now());
    }
    const auto decided = [&] {
        return cancelled_ || stream->failed() ||
               tracked->source.handover() == Source::Handover::durable ||
               tracked->source.handover() == Source::Handover::voided;
    };
    co_await world_.until(decided, patience);
    const Source::Handover handover = tracked->source.handover();

    const auto free = [this] { return !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    if (tracked_ != tracked || record_.quiesce != id || cancelled_) {
        throw Error(ErrorKind::cancelled, "the switchover was cancelled");
    }
    if (handover == Source::Handover::durable) {
        world_.hit(Probe::handover_durable);
        world_.trace("{}: handover {} is durable", disk_.name(), tracked->source.handover_lsn().v);
        const Step durable = [&](const Record& record) {
            return accept(handover_durable(record, id, tracked->source.handover_lsn()));
        };
        co_await update(durable);
        co_return Quiesced{id, record_.token_hash, tracked->source.handover_lsn()};
    }
    const bool voided = handover == Source::Handover::voided;
    world_.hit(voided ? Probe::handover_voided : Probe::handover_timeout);
    tracked->source.cancel_handover();
    const Step taken_back = [](const Record& record) { return accept(void_handover(record)); };
    co_await update(taken_back);
    if (std::exchange(quiesce_held_, false)) {
        release();
    }
    if (voided) {
        throw Error(ErrorKind::state, "the disk was written during the switchover", EBUSY);
    }
    throw Error(ErrorKind::timeout, "the disk did not drain", ETIMEDOUT);
}

Task<std::string> Plugin::fence(FenceRequest request) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step fenced = [&](const Record& record) {
        return accept(drover::fence(record, request));
    };
    const Record now = record_;
    fenced(now);
    if (now.stage != Stage::fenced) {
        const bool held_before = std::exchange(quiesce_held_, true);
        if (!world_.breaks(Rule::hold_before_fence)) {
            co_await hold();
        }
        const bool good = tracked_ && tracked_->source.handover() == Source::Handover::durable;
        if (!good) {
            if (!held_before) {
                quiesce_held_ = false;
                release();
            }
            throw Error(ErrorKind::state, "the disk was written after the handover");
        }
        co_await update(fenced);
        held_ = true;
        quiesce_held_ = false;
    }
    co_return record_.token;
}

Task<> Plugin::cancel(std::string quiesce_id) {
    const auto ready = [this] { return loaded_; };
    co_await world_.until(ready);
    const Step cancelling = [&](const Record& record) {
        return accept(drover::cancel(record, quiesce_id));
    };
    cancelling(record_);
    cancelled_ = true;
    const auto free = [this] { return !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    co_await update(cancelling);
    stop_stream();
    if (std::exchange(quiesce_held_, false)) {
        release();
    }
}

Task<> Plugin::unfence(std::string refusal_token) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step back = [&](const Record& record) {
        return accept(drover::unfence(record, refusal_token));
    };
    co_await update(back);
    stop_stream();
    release();
}

Task<> Plugin::force(std::string migration) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step forced = [&](const Record& record) {
        return accept(drover::force(record, migration));
    };
    co_await update(forced);
    stop_stream();
    release();
}

// --- destination

Task<> Plugin::supersede(std::string migration, uint64_t generation) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step superseded = [&](const Record& record) {
        return accept(drover::supersede(record, migration, generation));
    };
    superseded(record_);
    co_await hold();
    co_await update(superseded);
    stop_stream();
}

Task<> Plugin::prepare(ReplicaRequest request) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    request.refusal_token = world_.secret();
    const Step begin = [&](const Record& record) { return accept(begin_replica(record, request)); };
    begin(record_);
    co_await close_replica();
    co_await update(begin);
    make_replica();
}

Task<> Plugin::close_replica() {
    if (const std::shared_ptr<Replica> replica = std::exchange(replica_, nullptr)) {
        co_await replica->close();
    }
}

void Plugin::make_replica() {
    // What an fsync has lost may still be in the cache, and would be taken for what is there.
    disk_.image->reread();
    const std::string migration = record_.migration;
    const uint64_t generation = record_.generation;
    const Step voided = [=](const Record& before) {
        return accept(receive_void(before, migration, generation));
    };
    ReplicaEvents events;
    events.session = [this](StreamId stream) {
        Step step = [stream](Record record) {
            record.largest_stream = stream;
            return record;
        };
        return update(std::move(step));
    };
    events.base = [this](Lsn base) {
        Step step = [this, base](const Record& before) {
            if (before.stage == Stage::handed_over && base < before.handover) {
                world_.hit(Probe::handover_again);
            }
            return receive_base(before, base);
        };
        return update(std::move(step));
    };
    events.consistency = [this](bool consistent) {
        Step step = [consistent](Record record) {
            record.consistent = consistent;
            return record;
        };
        return update(std::move(step));
    };
    events.handover = [=, this](Lsn lsn, TokenHash hash) {
        Step step = [=](const Record& before) {
            const std::string hex =
                to_hex({reinterpret_cast<const char*>(hash.data()), hash.size()});
            return accept(receive_handover(before, migration, generation, lsn, hex));
        };
        return update(std::move(step));
    };
    events.voided = [this, voided] { return update(voided); };
    replica_ = std::make_shared<Replica>(world_,
                                         disk_,
                                         owner,
                                         parse_migration_id(migration).value(),
                                         generation,
                                         record_.largest_stream,
                                         std::move(events));
}

Task<> Plugin::promote(std::string migration, std::optional<std::string> token) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const bool before = may_write(record_);
    const Step promoted = [&](const Record& record) {
        return accept(token ? drover::promote(record, migration, *token)
                            : drover::force(record, migration));
    };
    promoted(record_);
    if (replica_) {
        co_await replica_->close();
    }
    if (!before) {
        co_await disk_.sync(true);
    }
    // Again: a frame that was under way may have taken the handover back.
    co_await update(promoted);
    if (!before) {
        untouched_ = true;
        release();
    } else {
        confirm();
    }
}

void Plugin::confirm() {
    if (std::exchange(unconfirmed_, false)) {
        release();
    }
}

Task<> Plugin::did_not_run(std::string migration) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step not_run = [&](const Record& record) {
        return accept(drover::did_not_run(record, migration));
    };
    not_run(record_);
    co_await hold(); // nothing comes after the look
    unconfirmed_ = true;
    if (!untouched_) {
        confirm();
        throw Error(ErrorKind::refused, "the VM may have run");
    }
    co_await update(not_run);
}

Task<std::string> Plugin::refuse(std::string migration) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const std::string token = world_.secret();
    const Step refused = [&](const Record& record) {
        return accept(drover::refuse(record, migration, token));
    };
    refused(record_);
    if (migration == record_.migration && !refusal_token_of(record_, migration)) {
        co_await close_replica();
        if (may_write(record_)) {
            co_await hold(); // it was promoted, and the VM could not be run
        }
        unconfirmed_ = false;
    }
    co_await update(refused);
    co_return refusal_token_of(record_, migration).value();
}

// --- either

Task<> Plugin::finish(std::string migration) {
    const auto free = [this] { return loaded_ && !control_; };
    co_await world_.until(free);
    const Guard one(control_);
    const Step finished = [&](const Record& record) {
        return accept(drover::finish(record, migration));
    };
    co_await update(finished);
    stop_stream();
    replica_.reset();
    if (may_write(record_)) {
        confirm();
    }
}

} // namespace drover::sim
