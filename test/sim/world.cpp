// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/world.h"

#include "common/secrets.h"
#include "test/sim/coordinator.h"

namespace drover::sim {
namespace {

constexpr uint64_t hang_turns = 3'000'000;
constexpr uint64_t hang_ticks = 30'000'000;

Content first_content(Random& random, uint64_t size) {
    Content content(size);
    for (uint64_t at = 0; at < size; at += hole_unit) {
        if (random.chance(60)) {
            const auto value = static_cast<int>(random.below(256));
            std::memset(&content[at], value, std::min(hole_unit, size - at));
        }
    }
    return content;
}

} // namespace

const char* to_string(Rule rule) {
    switch (rule) {
    case Rule::none:
        return "none";
    case Rule::report_after_write:
        return "a write is reported after it was done";
    case Rule::report_before_release:
        return "a range is given back after the write was reported";
    case Rule::commit_with_the_range:
        return "a capture is committed with its range held";
    case Rule::look_at_versions:
        return "a capture looks at the versions";
    case Rule::look_up_holes_again:
        return "a hole is looked up again with its range held";
    case Rule::report_failed_writes:
        return "a write that failed is reported";
    case Rule::answer_after_apply:
        return "a frame is answered after it was applied";
    case Rule::sync_before_fua:
        return "FUA is answered after an fsync";
    case Rule::notice_another_instance:
        return "a destination that was started again is another one";
    case Rule::save_before_answer:
        return "a record is durable before anybody is told";
    case Rule::load_makes_durable:
        return "a record that was found is made durable before it is gone by";
    case Rule::hold_before_fence:
        return "writes are held before the fence looks at the handover";
    case Rule::count_:
        break;
    }
    return "?";
}

Plan make_plan(Random& random) {
    Plan plan;
    const uint32_t block_size = random.chance(70) ? 4096 : 8192;
    const uint64_t blocks = random.between(1, 24);
    plan.disks.push_back(
        {blocks * block_size - (random.chance(50) ? random.below(4096) : 0), block_size});
    plan.moves = random.chance(40) ? static_cast<unsigned>(random.between(1, 2)) : 0;
    if (plan.moves > 0 && random.chance(60)) {
        for (uint64_t more = random.between(1, 2); more > 0; --more) {
            plan.disks.push_back(
                {random.between(1, 8) * block_size - random.below(4096), block_size});
        }
    }
    plan.memory = random.chance(80);
    plan.loses_destination = plan.moves > 0 && random.chance(15);
    plan.loses_source = plan.moves > 0 && !plan.loses_destination && random.chance(15);
    plan.limits.log_bytes = random.chance(30) ? random.between(0, 8192) : 64 * KiB;
    plan.limits.frame_bytes = uint64_t{block_size} * random.between(1, 4);
    plan.limits.region_bytes = uint64_t{block_size} * random.between(1, 8);
    plan.limits.frame_ops = random.between(1, 8);
    plan.plain = plan.moves == 0 && random.chance(10);
    plan.limits.prefix_order = !plan.plain;
    plan.granularity = random.chance(50) ? 512 : 4096;
    plan.guests = static_cast<unsigned>(random.between(1, 6));
    plan.links = static_cast<unsigned>(random.between(1, 4));
    plan.workers = static_cast<unsigned>(random.between(1, 4));
    plan.window = static_cast<unsigned>(random.between(1, 5));
    plan.requests = static_cast<unsigned>(random.between(5, 120));
    plan.quiesces = static_cast<unsigned>(random.below(3));
    plan.idle = static_cast<unsigned>(random.between(1, 300));
    plan.latency = random.chance(40) ? 0 : static_cast<unsigned>(random.between(1, 200));
    const bool calm = random.chance(15) || plan.plain;
    plan.faults = calm ? 0 : static_cast<unsigned>(random.between(1, 20));
    plan.cuts = calm || random.chance(70) ? 0 : static_cast<unsigned>(random.between(50, 1000));
    plan.fault_kinds = static_cast<uint32_t>(random.next());
    if (!calm && random.chance(30)) {
        plan.bad_writes = static_cast<unsigned>(random.between(1, 60));
    }
    if (!calm && random.chance(30)) {
        plan.bad_saves = static_cast<unsigned>(random.between(1, 1000));
    }
    return plan;
}

Record accept(const Step& step) {
    if (const Refusal* const refusal = std::get_if<Refusal>(&step)) {
        throw Error(refusal->kind, refusal->text);
    }
    return std::get<Record>(step);
}

// --- a disk at a host

void Disk::apply(Extent where, const std::byte* data, bool punch) {
    if (where.length == 0) {
        return;
    }
    if (data != nullptr) {
        image->write(where.offset, data, where.length);
    } else {
        image->zero(where, punch);
    }
}

Task<> Disk::write(Extent where, const std::byte* data) {
    return change(where, data, false);
}

Task<> Disk::zero(Extent where, bool punch) {
    return change(where, nullptr, punch);
}

Task<> Disk::change(Extent where, const std::byte* data, bool punch) {
    Random& random = world.random;
    if (random.chance(site == 0 ? 2 : 15)) {
        co_await world.pause(random.below(400)); // it is slow at times
    }
    if (world.hosts[site].disk_full) {
        throw Error(ErrorKind::io, "no space left", ENOSPC);
    }
    const uint64_t middle = random.below(where.length + 1);
    apply({where.offset, middle}, data, false);
    co_await world.turn();
    if (random.rarely(world.plan.bad_writes) && !world.faults_over) {
        throw Error(ErrorKind::io, "the disk has failed", EIO);
    }
    if (data == nullptr) {
        apply(where, data, punch);
    } else {
        apply({where.offset + middle, where.length - middle}, data + middle, false);
    }
    co_await world.turn();
}

Task<> Disk::sync(bool may_fail) {
    const auto check = [this] {
        if (sync_failed) {
            throw Error(ErrorKind::io, "an earlier fsync has failed", EIO);
        }
    };
    check();
    const size_t mark = image->begin_sync();
    co_await world.turn();
    if (world.random.chance(10)) {
        co_await world.pause(world.random.below(200));
    }
    if (may_fail && world.random.rarely(world.plan.bad_writes) && !world.faults_over) {
        image->fail_sync(mark);
        sync_failed = true;
        throw Error(ErrorKind::io, "fsync has failed", EIO);
    }
    image->end_sync(mark);
    check(); // another one may have been told of the loss
}

// As write_file_durably: written aside, renamed, the folder synced.
Task<> Disk::save(Record next) {
    co_await world.turn();
    const bool bad = world.random.rarely(world.plan.bad_saves) && !world.faults_over;
    if (world.hosts[site].disk_full || (bad && world.random.chance(50))) {
        world.hit(Probe::record_not_saved);
        throw Error(ErrorKind::io, "the record could not be written", ENOSPC);
    }
    visible = next;
    world.record_changed();
    co_await world.turn();
    if (bad) {
        world.hit(Probe::record_half_saved);
        throw Error(ErrorKind::io, "the record's folder could not be synced", EIO);
    }
    durable = next;
    world.record_changed();
}

// --- the world

World::World(uint64_t seed, Rule broken, bool trace, Probes& probes)
    : Scheduler(seed), plan(make_plan(random)), everybody(new_owner()), plain_server(new_owner()),
      seed_(seed), broken_(broken), trace_(trace), probes_(probes) {
    const size_t count = plan.disks.size();
    histories.resize(count);
    looked_at_.resize(count);
    for (size_t site = 0; site < sites; ++site) {
        for (size_t i = 0; i < count; ++i) {
            disks_[site].push_back(std::make_unique<Disk>(Disk{*this, site, i}));
            Disk& disk = *disks_[site].back();
            Content content = first_content(random, plan.disks[i].disk_size);
            for (uint64_t at = 0; site == 1 && at < content.size(); at += hole_unit) {
                // An old copy.
                if (random.chance(50)) {
                    const auto from =
                        disks_[0][i]->image->now().begin() + static_cast<ptrdiff_t>(at);
                    std::copy_n(from,
                                std::min(hole_unit, content.size() - at),
                                content.begin() + static_cast<ptrdiff_t>(at));
                }
            }
            disk.image.emplace(std::move(content));
            for (uint64_t unit = 0; unit * hole_unit < disk.image->size(); ++unit) {
                if (random.chance(70)) {
                    disk.image->dig(unit);
                }
            }
            if (site == 0) {
                disk.durable =
                    first_record(fmt::format("0f8fad5b-d9cb-469f-a165-7086772895{:02}", i));
                disk.visible = disk.durable;
            }
        }
    }
    vm_ = std::make_unique<Vm>(*this);
}

World::~World() {
    coordinator.reset();
    agent.reset();
    for (auto& disks : disks_) {
        for (const auto& each : disks) {
            kill_plugin(*each);
        }
    }
    kill(plain_server);
    kill(everybody);
}

void World::fail(const std::string& what) const {
    throw Failure(fmt::format("{} (turn {})", what, turns()));
}

std::string World::secret() {
    return fmt::format("{:016x}{:016x}", random.next(), random.next());
}

void World::run() {
    trace("disk {} bytes, blocks of {}, log {}, frames of {} bytes or {} operations, {} guests, {} "
          "links, {} workers, window {}, latency {}, {} faults ({:b}), {} bad writes, {} bad "
          "saves, {}",
          plan.disks[0].disk_size,
          plan.disks[0].block_size,
          plan.limits.log_bytes,
          plan.limits.frame_bytes,
          plan.limits.frame_ops,
          plan.guests,
          plan.links,
          plan.workers,
          plan.window,
          plan.latency,
          plan.faults,
          plan.fault_kinds,
          plan.bad_writes,
          plan.bad_saves,
          plan.plain ? "plain" : "drover");
    vm_->start_guests();
    spawn(everybody, faults());
    spawn(everybody, cuts());
    spawn(everybody, plan.moves > 0 ? moves() : course());
    while (!finished) {
        step();
        check();
        if (turns() > hang_turns || now() > hang_ticks) {
            fail("it does not come to an end");
        }
    }
}

namespace {

// A process that can't start ends.
Task<> start(World& world, Disk& disk, std::weak_ptr<Plugin> process) {
    bool good = true;
    try {
        co_await process.lock()->start();
    } catch (const Error& error) {
        world.trace("{}: not served: {}", disk.name(), error.what());
        good = false;
    }
    if (!good) {
        const auto end = [](World& its_world, Disk& its_disk, std::weak_ptr<Plugin> it) -> Task<> {
            if (its_disk.plugin == it.lock()) {
                its_world.kill_plugin(its_disk);
            }
            co_return;
        };
        world.spawn(world.everybody, end(world, disk, process));
    }
}

} // namespace

void World::start_plugin(Disk& disk) {
    if (disk.plugin || !hosts[disk.site].up) {
        return;
    }
    disk.sync_failed = false;
    disk.plugin = std::make_shared<Plugin>(*this, disk);
    spawn(disk.plugin->owner, start(*this, disk, disk.plugin));
}

void World::kill_plugin(Disk& disk) {
    if (!disk.plugin) {
        return;
    }
    trace("{}: process {} dies", disk.name(), disk.plugin->instance);
    kill(disk.plugin->owner); // they may hold it
    disk.plugin.reset();
    if (disk.site != vm_->home()) {
        for (auto& [stream, history] : histories[disk.index]) {
            history->from_the_start();
        }
    }
    record_changed();
}

void World::crash_host(size_t site) {
    trace("host {} dies", site);
    for (const auto& disk : disks_[site]) {
        kill_plugin(*disk);
        disk->image->crash(random);
        if (disk->visible != disk->durable) {
            if (random.chance(50)) {
                hit(Probe::record_reverted);
                disk->visible = disk->durable;
            }
            disk->durable = disk->visible;
        }
    }
    if (coordinator && coordinator->site() == site) {
        coordinator.reset();
    }
    if (agent && agent->site() == site) {
        agent.reset();
    }
    vm_->lose(site);
    hosts[site].up = false;
    record_changed();
}

} // namespace drover::sim
