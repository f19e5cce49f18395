// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/vm.h"

namespace drover::sim {

// --- what it may expect

void Expectation::begin(const Pending& request) {
    pending_.emplace_back(request, numbers_);
}

void Expectation::end(const Pending& request, const Content& disk) {
    const auto found = std::find_if(
        pending_.begin(), pending_.end(), [&](const auto& each) { return each.first == request; });
    const uint64_t began = found->second;
    pending_.erase(found);
    if (request->kind != GuestRequest::Kind::flush) {
        const auto begin = disk.begin() + static_cast<ptrdiff_t>(request->where.offset);
        const auto end = disk.begin() + static_cast<ptrdiff_t>(request->where.end());
        std::copy(begin, end, now_.begin() + static_cast<ptrdiff_t>(request->where.offset));
        // Its own bytes may be there too, where another one that was under way beside it has
        // written over them.
        ++numbers_;
        Content own = request->data;
        own.resize(request->where.length);
        loose_.push_back({request->where.offset, std::move(own), numbers_});
        loose_.push_back({request->where.offset, Content(begin, end), numbers_});
        return;
    }
    if (request->failed) {
        // The guest knows that any of this may be lost, whatever a later flush says.
        doubtful_ = std::max(doubtful_, numbers_);
        return;
    }
    while (!loose_.empty() && loose_.front().number <= began) {
        const Change& change = loose_.front();
        if (change.number <= doubtful_) {
            lossy_.push_back(std::move(loose_.front()));
            loose_.pop_front();
            continue;
        }
        std::copy(change.after.begin(),
                  change.after.end(),
                  flushed_.begin() + static_cast<ptrdiff_t>(change.offset));
        loose_.pop_front();
    }
}

bool Expectation::under_way(uint64_t at) const {
    return std::any_of(pending_.begin(), pending_.end(), [at](const auto& each) {
        const Extent where = each.first->where;
        return where.offset <= at && at < where.end();
    });
}

std::optional<uint64_t> Expectation::wrong_now(const Content& disk) const {
    if (disk == now_) {
        return std::nullopt;
    }
    for (uint64_t at = 0; at < disk.size(); ++at) {
        if (disk[at] != now_[at] && !under_way(at)) {
            return at;
        }
    }
    return std::nullopt;
}

std::optional<uint64_t> Expectation::wrong_after_loss(const Content& disk) const {
    for (uint64_t at = 0; at < disk.size(); ++at) {
        if (disk[at] == flushed_[at] || under_way(at)) {
            continue;
        }
        const auto shows = [&](const Change& change) {
            return change.offset <= at && at < change.offset + change.after.size() &&
                   change.after[at - change.offset] == disk[at];
        };
        if (std::none_of(loose_.begin(), loose_.end(), shows) &&
            std::none_of(lossy_.begin(), lossy_.end(), shows)) {
            return at;
        }
    }
    return std::nullopt;
}

void Expectation::start_anew(const Content& disk, bool host_was_down) {
    now_ = disk;
    pending_.clear();
    if (host_was_down) {
        flushed_ = disk;
        loose_.clear();
        lossy_.clear();
    } else {
        loose_.push_back({0, disk, ++numbers_});
    }
}

// --- the machine

Vm::Vm(World& world) : world_(world) {
    for (size_t i = 0; i < world.plan.disks.size(); ++i) {
        expects_.push_back(std::make_unique<Expectation>(world.disk(0, i).image->now()));
    }
}

std::optional<size_t> Vm::runs_at() const {
    for (size_t site = 0; site < sites; ++site) {
        if (at[site] == Machine::running) {
            return site;
        }
    }
    return std::nullopt;
}

// Where its disks are, as it sees them.
size_t Vm::home() const {
    return runs_at().value_or(last_site_);
}

void Vm::begin_to_run(size_t site, bool anew) {
    for (size_t other = 0; other < sites; ++other) {
        if (other != site && at[other] == Machine::running) {
            world_.fail("the VM runs at both sites");
        }
    }
    const bool host_was_down = site != last_site_ || world_.hosts[site].boot != host_boot_;
    for (size_t i = 0; i < expects_.size(); ++i) {
        Disk& disk = world_.disk(site, i);
        if (!may_write(disk.durable) || !disk.plugin || !may_write(disk.plugin->record())) {
            world_.fail(
                fmt::format("the VM runs at {}, and {} is not its owner's", site, disk.name()));
        }
        const auto wrong = anew ? expects_[i]->wrong_after_loss(disk.image->now())
                                : expects_[i]->wrong_now(disk.image->now());
        if (wrong && !forgiven_) {
            world_.fail(fmt::format("the VM {} at {}, and {} has lost a write at byte {}",
                                    anew ? "boots" : "goes on",
                                    site,
                                    disk.name(),
                                    *wrong));
        }
        if (anew || forgiven_) {
            expects_[i]->start_anew(disk.image->now(), host_was_down);
        }
    }
    life_ += std::exchange(forgiven_, false) ? 1 : 0;
    at[site] = Machine::running;
    last_site_ = site;
    host_boot_ = world_.hosts[site].boot;
    memory_[site] = ++runs_;
    world_.trace("the VM {} at {}", anew ? "boots" : "runs", site);
}

void Vm::boot(size_t site) {
    begin_to_run(site, true);
}

void Vm::resume(size_t site) {
    if (at[site] != Machine::running) {
        if (memory_[site] != runs_ && !forgiven_) {
            world_.fail(
                fmt::format("the VM goes on at {} from memory that has run elsewhere", site));
        }
        begin_to_run(site, false);
    }
}

void Vm::pause(size_t site) {
    if (at[site] == Machine::running) {
        at[site] = Machine::paused;
        world_.trace("the VM is paused at {}", site);
    }
}

void Vm::load(size_t site, size_t from) {
    at[site] = Machine::loaded;
    memory_[site] = memory_[from];
    world_.trace("the VM is loaded at {}", site);
}

bool Vm::has_settled(size_t site) {
    std::erase_if(sent_,
                  [](const Sent& sent) { return sent.request->done || sent.plugin.expired(); });
    return std::none_of(sent_.begin(), sent_.end(), [&](const Sent& sent) {
        return sent.site == site && sent.life != life_;
    });
}

void Vm::lose(size_t site) {
    if (at[site] == Machine::none) {
        return;
    }
    const bool had_guest = at[site] == Machine::running || at[site] == Machine::paused;
    at[site] = Machine::none;
    memory_[site] = 0;
    if (had_guest && site == last_site_) {
        ++life_; // what was under way is not sent again
        world_.trace("the VM is lost at {}", site);
    }
}

// --- its requests

void Vm::start_guests() {
    for (unsigned i = 0; i < world_.plan.guests; ++i) {
        world_.spawn(world_.everybody, guest());
    }
}

std::shared_ptr<GuestRequest> Vm::make_request(size_t index) {
    using Kind = GuestRequest::Kind;
    Random& random = world_.random;
    const uint64_t size = world_.plan.disks[index].disk_size;
    const uint64_t sort = random.below(100);
    const Kind kind = sort < 60   ? Kind::write
                      : sort < 75 ? Kind::zero
                      : sort < 90 ? Kind::trim
                                  : Kind::flush;
    // Half of them in one place, so that they meet.
    const uint64_t span = random.chance(50) ? std::min<uint64_t>(size, 6000) : size;
    uint64_t offset = random.below(span);
    uint64_t length = random.chance(80) ? random.between(1, 3000)
                                        : random.between(1, max_guest_request - 2 * sector);
    if (random.chance(60)) {
        offset = round_down(offset, sector);
        length = round_up(length, sector);
    }
    const auto request = std::make_shared<GuestRequest>();
    request->kind = kind;
    request->id = ++requests_made;
    if (kind == Kind::flush) {
        return request;
    }
    request->where = {offset, std::min(length, size - offset)};
    request->fails = random.chance(2) && !world_.faults_over;
    if (kind == Kind::write) {
        request->data.resize(request->where.length);
        for (uint64_t i = 0; i < request->data.size(); ++i) {
            request->data[i] =
                static_cast<std::byte>(1 + (request->id * 131 + (offset + i) / 16) % 255);
        }
        if (random.chance(8)) {
            // What the other site has there: old content comes back.
            const uint64_t block = world_.plan.disks[index].block_size;
            const uint64_t begin = round_down(offset, block);
            request->where = {begin, std::min(block, size - begin)};
            const auto old = world_.disk(1 - last_site_, index).image->now().begin() +
                             static_cast<ptrdiff_t>(begin);
            request->data.assign(old, old + static_cast<ptrdiff_t>(request->where.length));
        }
    }
    return request;
}

Task<> Vm::guest() {
    const auto may = [this] { return runs_at() && (!held || (one_more && under_way_ == 0)); };
    for (;;) {
        co_await world_.pause(world_.random.below(world_.plan.idle));
        co_await world_.until(may);
        one_more = false;
        const size_t index = world_.random.below(expects_.size());
        co_await perform(index, make_request(index));
    }
}

Task<> Vm::perform(size_t index, std::shared_ptr<GuestRequest> request) {
    struct Count {
        unsigned& count;
        explicit Count(unsigned& its_count) : count(its_count) { ++count; }
        ~Count() { --count; }
    } const count(under_way_);
    Expectation& expected = *expects_[index];
    const uint64_t life = life_;
    expected.begin(request);
    std::weak_ptr<Plugin> process;
    const auto served = [&] {
        return life != life_ || world_.disk(home(), index).plugin != nullptr;
    };
    size_t site = 0;
    const auto over = [&] {
        return life != life_ || request->done || process.expired() || home() != site;
    };
    for (bool again = false; !request->done; again = true) {
        co_await world_.until(served);
        if (life != life_) {
            co_return;
        }
        if (again) {
            world_.hit(Probe::write_resent);
        }
        site = home();
        process = world_.disk(site, index).plugin;
        sent_.push_back({site, process, request, life});
        world_.disk(site, index).plugin->submit(request);
        co_await world_.until(over);
        if (life != life_) {
            co_return;
        }
    }
    expected.end(request, world_.disk(home(), index).image->now());
}

} // namespace drover::sim
