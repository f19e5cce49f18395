// SPDX-License-Identifier: GPL-2.0-or-later
// What must hold after each turn, whatever has gone wrong:
//   - at most one side may write a disk, in its process, in its record and after its host's death;
//   - a replica that is in sync, or says that it is consistent, is as the source's disk was after
//     some request of its guest (a write-order prefix), when no frame is being applied;
//   - what the source keeps in memory is bounded by its limits.
// Others check where it happens: vm.cpp, whether the VM runs once, with its owner's disks, and
// finds every write; course.cpp, what a handover stands for; link.cpp, that no frame of the present
// session is refused.
#include "test/sim/vm.h"

namespace drover::sim {

void World::check() {
    if (records_changed_) {
        records_changed_ = false;
        check_owners();
    }
    for (size_t i = 0; i < plan.disks.size(); ++i) {
        for (size_t site = 0; site < sites; ++site) {
            Disk& each = disk(site, i);
            if (each.plugin && each.plugin->replica()) {
                check_prefix(each);
            }
            if (each.plugin && each.plugin->tracked()) {
                check_memory(*each.plugin->tracked());
            }
        }
    }
}

void World::check_owners() {
    for (size_t site = 0; site < sites; ++site) {
        const auto& disks = disks_[site];
        if (hosts[site].disowned && std::none_of(disks.begin(), disks.end(), [](const auto& each) {
                return may_write(each->visible) || may_write(each->durable);
            })) {
            hosts[site].disowned = false; // it knows by now
        }
    }
    for (size_t i = 0; i < plan.disks.size(); ++i) {
        unsigned owners = 0;
        for (const auto& disks : disks_) {
            const Disk& each = *disks[i];
            if (hosts[each.site].lost || hosts[each.site].disowned) {
                continue;
            }
            const bool process = each.plugin && may_write(each.plugin->record());
            owners += process || may_write(each.visible) || may_write(each.durable) ? 1 : 0;
        }
        if (owners > 1) {
            fail(fmt::format("disk {} has two owners", i));
        }
    }
}

// The VM finds what it wrote, where it runs.
void World::check_expected() const {
    for (const auto& disk : disks_[vm_->home()]) {
        if (const auto wrong = vm_->expects(disk->index).wrong_now(disk->image->now())) {
            fail(fmt::format("{} is not what its VM wrote at byte {}", disk->name(), *wrong));
        }
    }
}

void World::check_prefix(Disk& there) {
    const Replica& replica = *there.plugin->replica();
    const Record& record = there.plugin->record();
    if (record.role != Role::replica || !replica.at_rest() ||
        looked_at_[there.index] == there.image->changes()) {
        return;
    }
    const std::shared_ptr<Plugin>& source = disk(1 - there.site, there.index).plugin;
    bool in_sync = false;
    if (source && source->tracked() && source->stream()) {
        const Source& core = source->tracked()->source;
        const bool here = source->stream()->known_instance() == there.plugin->instance &&
                          replica.stream() == core.stream() && replica.based();
        const Source::Progress progress = core.progress();
        in_sync = here && progress.in_sync && !replica.torn();
        const bool handed = core.handover() == Source::Handover::queued ||
                            core.handover() == Source::Handover::durable;
        if (here && !handed && replica.applied() == progress.last &&
            record.stage == Stage::handed_over) {
            fail("the handover was taken back, and the destination still has it");
        }
    }
    // The mark of the destination comes before the source knows of it.
    if (!in_sync && (!record.consistent || replica.unmarked())) {
        return;
    }
    hit(in_sync ? Probe::looked_in_sync : Probe::looked_consistent);
    const StreamId stream = in_sync ? replica.stream() : there.marked_by;
    const auto found = histories[there.index].find({stream.generation, stream.counter, 0});
    if (found == histories[there.index].end()) {
        fail("consistent, and no stream was ever here");
    }
    if (!found->second->has(there.image->now())) {
        fail(fmt::format("{}, and the destination is not a prefix (request {} of {})",
                         in_sync ? "in sync" : "marked consistent",
                         found->second->position(),
                         found->second->size()));
    }
    looked_at_[there.index] = there.image->changes();
}

void World::check_memory(const TrackedDisk& tracked) const {
    // The log; what is captured and not yet acknowledged; and what a frame is put together in.
    const Source::Limits& limits = tracked.source.limits();
    const uint64_t frame = limits.frame_bytes + 2 * plan.disks[0].block_size + max_guest_request;
    const uint64_t frames = plan.links * (plan.window + 8) + 4;
    const Source::Progress progress = tracked.source.progress();
    if (progress.lag_bytes > limits.log_bytes) {
        fail(fmt::format(
            "the log has {} bytes, its limit is {}", progress.lag_bytes, limits.log_bytes));
    }
    if (*tracked.live_bytes > limits.log_bytes + frames * frame) {
        fail(fmt::format("{} bytes are kept", *tracked.live_bytes));
    }
}

} // namespace drover::sim
