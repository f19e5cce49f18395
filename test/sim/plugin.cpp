// SPDX-License-Identifier: GPL-2.0-or-later
// What a plugin does for its guest, and what it does with its record.
#include "test/sim/plugin.h"

#include "common/secrets.h"
#include "test/sim/vm.h"

namespace drover::sim {

Plugin::Plugin(World& world, Disk& disk)
    : instance(++disk.instances), owner(world.new_owner()), world_(world), disk_(disk) {}

Plugin::~Plugin() {
    world_.kill(owner);
    stream_.reset();
}

Task<> Plugin::start() {
    co_await world_.turn();
    record_ = disk_.visible;
    // Who finds a record goes by it: so it must not go back any more.
    if (!world_.breaks(Rule::load_makes_durable)) {
        disk_.durable = disk_.visible;
        world_.record_changed();
    }
    const Record started = at_start(record_);
    if (started != record_) {
        co_await save(started);
    }
    unconfirmed_ = may_write(record_) && record_.stage == Stage::promoted;
    if (may_write(record_) && !unconfirmed_) {
        release();
    }
    if (record_.role == Role::replica &&
        (record_.stage == Stage::receiving || record_.stage == Stage::handed_over)) {
        make_replica();
    }
    loaded_ = true;
    world_.trace("{}: served by process {}, {} {}",
                 disk_.name(),
                 instance,
                 to_string(record_.role),
                 to_string(record_.stage));
}

// --- the guest's requests

void Plugin::submit(std::shared_ptr<GuestRequest> request) {
    ++waiting_;
    world_.spawn(owner, serve(std::move(request)));
}

Task<> Plugin::serve(std::shared_ptr<GuestRequest> request) {
    using Kind = GuestRequest::Kind;
    try {
        if (request->kind == Kind::flush) {
            --waiting_;
            co_await disk_.sync();
            if (tracked_) {
                tracked_->source.flush_done(world_.now());
            }
        } else {
            co_await change(request);
        }
    } catch (const Error&) {
        request->failed = true;
        world_.hit(Probe::write_failed);
    }
    co_await world_.turn();
    request->done = true;
}

Task<> Plugin::change(std::shared_ptr<GuestRequest> request) {
    const auto open = [this] { return loaded_ && !held_; };
    co_await world_.until(open);
    ++under_way_;
    untouched_ = false;
    struct Arrived {
        unsigned& count;
        ~Arrived() { --count; }
    } const arrived{under_way_};
    const std::shared_ptr<TrackedDisk> tracked = tracked_;
    if (tracked) {
        co_await change_tracked(request, tracked);
    } else {
        --waiting_;
        co_await do_locally(*request);
    }
}

Task<> Plugin::do_locally(GuestRequest& request) {
    using Kind = GuestRequest::Kind;
    if (request.fails) {
        // Some of it may be there.
        const Extent part{request.where.offset, world_.random.below(request.where.length + 1)};
        const auto* data = request.kind == Kind::write ? request.data.data() : nullptr;
        co_await disk_.write(part, data);
        throw Error(ErrorKind::io, "the disk has failed", EIO);
    }
    if (request.kind == Kind::write) {
        co_await disk_.write(request.where, request.data.data());
    } else {
        co_await disk_.zero(request.where, request.kind == Kind::trim);
    }
}

Task<> Plugin::change_tracked(std::shared_ptr<GuestRequest> request,
                              std::shared_ptr<TrackedDisk> tracked) {
    using Kind = GuestRequest::Kind;
    Source& source = tracked->source;
    const Extent where = request->where;
    const auto report = [&](bool wanted) {
        if (request->kind == Kind::write) {
            const Bytes copy = wanted ? tracked->copy(request->data.data(), where.length) : nullptr;
            source.write_done(where, copy, world_.now());
        } else {
            const OpType type = request->kind == Kind::zero ? OpType::zero : OpType::trim;
            source.zero_done(where, type, world_.now());
        }
    };
    std::optional<TrackedDisk::Range> range;
    range.emplace(world_, *tracked, where);
    const auto granted = [&] { return range->granted(); };
    co_await world_.until(granted);
    --waiting_;
    const bool too_early = world_.breaks(Rule::report_after_write) && !request->fails;
    if (too_early) {
        report(true);
    }
    std::optional<Error> failure;
    try {
        co_await do_locally(*request);
    } catch (const Error& error) {
        failure = error;
    }
    if (world_.breaks(Rule::report_before_release)) {
        range.reset();
        co_await world_.turn();
        co_await world_.turn();
    }
    if (failure) {
        if (!world_.breaks(Rule::report_failed_writes)) {
            source.spoiled(where);
        }
    } else if (!too_early) {
        const bool wanted = source.wants_data(where);
        co_await world_.turn();
        if (!wanted) {
            world_.hit(Probe::not_wanted);
        }
        report(wanted);
    }
    tracked->history->add(where, disk_.image->now());
    world_.trace("{}: request {}: {} {}+{}{}",
                 disk_.name(),
                 request->id,
                 request->kind == Kind::write  ? "write"
                 : request->kind == Kind::zero ? "zero"
                                               : "trim",
                 where.offset,
                 where.length,
                 failure ? " failed" : "");
    co_await world_.turn();
    range.reset();
    if (failure) {
        throw *failure;
    }
}

Task<> Plugin::start_tracking(std::shared_ptr<TrackedDisk> tracked) {
    const bool was_held = std::exchange(held_, true);
    const auto idle = [this] { return under_way_ == 0; };
    co_await world_.until(idle);
    tracked->history = std::make_shared<History>(disk_.image->now());
    world_.histories[disk_.index][tracked->source.stream()] = tracked->history;
    world_.trace("{}: tracked, stream {}/{}",
                 disk_.name(),
                 tracked->source.stream().generation,
                 tracked->source.stream().counter);
    tracked_ = std::move(tracked);
    held_ = was_held;
}

Task<> Plugin::hold() {
    held_ = true;
    const auto idle = [this] { return under_way_ == 0; };
    co_await world_.until(idle);
}

// --- the record

// One at a time; what `step` is given is what it replaces.
Task<> Plugin::update(Step step) {
    const auto free = [this] { return !saving_; };
    co_await world_.until(free);
    const Record next = step(record_);
    if (next != record_) {
        co_await save(next);
    }
}

Task<> Plugin::save(Record next) {
    const auto free = [this] { return !saving_; };
    co_await world_.until(free);
    saving_ = true;
    struct Saved {
        bool& saving;
        ~Saved() { saving = false; }
    } const saved{saving_};
    ++next.version;
    const bool early = world_.breaks(Rule::save_before_answer);
    if (early) {
        record_ = next;
        world_.spawn(owner, disk_.save(next));
        co_return;
    }
    co_await disk_.save(next);
    record_ = std::move(next);
    world_.record_changed();
    world_.trace("{}: record {}: {} {}, stream {}/{}/{}{}",
                 disk_.name(),
                 record_.version,
                 to_string(record_.role),
                 to_string(record_.stage),
                 record_.largest_stream.generation,
                 record_.largest_stream.counter,
                 record_.largest_stream.session,
                 record_.consistent ? ", consistent" : "");
}

} // namespace drover::sim
