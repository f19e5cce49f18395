// SPDX-License-Identifier: GPL-2.0-or-later
// A simulated world: two hosts with the images and records on them, the network between
// them, and a seed that decides what each does next and what goes wrong. The real core (Source,
// Applier, the steps of the ownership record) runs in it; plugin.h, stream.h and replica.h stand
// for the adapters around it, and take the same steps.
//
// What is checked is in checks.cpp, what goes wrong in faults.cpp.
#pragma once

#include "common/error.h"
#include "migrator/state_files.h"
#include "nbd-proxy/core/ownership.h"
#include "nbd-proxy/core/source.h"
#include "test/sim/images.h"
#include "test/sim/probes.h"
#include "test/sim/scheduler.h"

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace drover::sim {

// Rules that the adapters keep; broken one at a time, to see that the checks find it. Those of the
// core are broken by test/sim/mutations.
enum class Rule {
    none,
    report_after_write,
    report_before_release,
    commit_with_the_range,
    look_at_versions,
    look_up_holes_again,
    report_failed_writes,
    answer_after_apply,
    sync_before_fua,
    notice_another_instance,
    save_before_answer,
    load_makes_durable,
    hold_before_fence,
    count_,
};
const char* to_string(Rule rule);

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What a seed decides once.
struct Plan {
    std::vector<BlockGeometry> disks;
    Source::Limits limits;
    uint64_t granularity = 512;
    unsigned guests = 0, links = 0, workers = 0, window = 0, requests = 0, quiesces = 0;
    unsigned idle = 0;    // ticks, at most, between two requests of a guest
    unsigned latency = 0; // ticks, at most, for what crosses the network
    bool plain = false;   // the destination is any NBD server

    // Moved by a coordinator, with agents and recoveries, and not by an operator's hands: so often.
    unsigned moves = 0;
    bool memory = false; // the VM's memory moves too
    bool loses_destination = false, loses_source = false;

    // What goes wrong: how many times; which of the kinds of faults.cpp; and, in ten thousand, how
    // many writes and saves fail.
    unsigned faults = 0;
    unsigned cuts = 0; // ticks, at most, from one loss of the links to the next; 0: none but those
    uint32_t fault_kinds = 0;
    unsigned bad_writes = 0, bad_saves = 0;
};
Plan make_plan(Random& random);

// The record that a step leads to; throws Error where it was refused.
Record accept(const Step& step);

inline constexpr size_t sites = 2;

struct Host {
    bool up = true;
    uint64_t boot = 1;
    bool disk_full = false;
    // Down, and an operator takes it for dead; and its disks, from when he has taken the VM at the
    // other site until it has come back and was told.
    bool lost = false, disowned = false;
};

struct TrackedDisk;
class Plugin;
class World;

// One disk of the VM at one site: what is on the host's storage, and the process that serves it.
struct Disk {
    World& world;
    size_t site, index;

    std::optional<CachedDisk> image;
    // The record's file: as a process finds it, and as it is after the host's death, unless it
    // is the other one by then.
    Record visible, durable;
    StreamId marked_by;             // whose marks the record has
    std::shared_ptr<Plugin> plugin; // null: not served
    uint64_t instances = 0;         // processes that there were
    bool sync_failed = false;       // for the process that has it open, for good

    std::string name() const { return fmt::format("disk {} at {}", index, site); }
    // As the image's file does it: by and by, and not always. Throws Error(io).
    Task<> write(Extent where, const std::byte* data); // null: zeroes
    Task<> zero(Extent where, bool punch);
    Task<> sync(bool may_fail = false);
    Task<> save(Record next);
    void start_blank(const Content& content);

private:
    Task<> change(Extent where, const std::byte* data, bool punch);
    void apply(Extent where, const std::byte* data, bool punch);
};

class Vm;
class Agent;
class Coordinator;

// What the coordinator has written down at the VM's source.
struct MigrationJournal {
    std::string migration;
    uint64_t generation = 0;
    size_t from = 0;
    std::optional<JournalStep> last;
    bool is_open() const { return last && *last != JournalStep::over; }
};

class World : public Scheduler {
public:
    World(uint64_t seed, Rule broken, bool trace, Probes& probes);
    ~World();
    // Throws Failure.
    void run();

    bool breaks(Rule rule) const { return broken_ == rule; }
    void hit(Probe probe) { ++probes_[size_t(probe)]; }
    [[noreturn]] void fail(const std::string& what) const;
    template <typename... Args>
    void trace(fmt::format_string<Args...> format, Args&&... args) {
        if (trace_) {
            fmt::print("{:7} {}\n", now(), fmt::format(format, std::forward<Args>(args)...));
        }
    }

    const Plan plan;
    // Actors of nobody that can die: the guest's applications, the faults, the network.
    const Owner everybody;
    Owner plain_server; // the destination's process, if it is any NBD server
    std::array<Host, sites> hosts;
    bool partitioned = false;
    bool stop_faults = false; // from somebody who wants to come to an end
    bool faults_over = false;
    bool finished = false;

    // One of each at a time, which their locks see to.
    std::shared_ptr<Coordinator> coordinator; // or who recovers in its place
    std::shared_ptr<Agent> agent;
    MigrationJournal journal;

    Disk& disk(size_t site, size_t index) { return *disks_[site][index]; }
    Vm& vm() { return *vm_; }
    bool reachable(size_t site) const { return hosts[site].up && !partitioned; }
    bool is_served(size_t site) const; // all disks
    // Of the keys, ids and tokens, which nobody guesses.
    std::string secret();
    // When what is sent now is there.
    uint64_t arrival() { return now() + random.below(plan.latency + 1); }

    // Starts the process that serves a disk; as the real one, it first looks at its record.
    void start_plugin(Disk& disk);
    void kill_plugin(Disk& disk);
    void crash_host(size_t site);

    // Of each stream that there was: what its source's disk held. By disk.
    std::vector<std::map<StreamId, std::shared_ptr<History>>> histories;

    // A record has changed somewhere, as a process sees it or on storage: looked at before the next
    // turn.
    void record_changed() { records_changed_ = true; }

private:
    // checks.cpp
    void check();
    void check_owners();
    void check_expected() const;
    void check_prefix(Disk& disk);
    void check_memory(const TrackedDisk& tracked) const;
    // faults.cpp
    Task<> faults();
    Task<> fault(unsigned kind);
    Task<> cuts();
    // course.cpp
    Task<> course();
    Task<> keep_running();
    Task<> keep_served(Disk& disk);
    std::optional<size_t> bootable() const;
    template <typename Make>
    auto operate(size_t site, Make&& make);
    Task<> replicate();
    Task<std::string> hand_over(bool in_earnest);
    Task<> give_up(std::string quiesce_id);
    void check_handover(const Disk& source, const Disk& there, bool same_process) const;
    Task<bool> take_over(std::string quiesce_id);
    // moves.cpp
    Task<> moves();
    Task<> move(size_t from);
    Task<> keep_recovered();
    Task<bool> amid_migration();
    Task<> lose_destination();
    Task<> lose_source();
    Task<bool> take_by_force(size_t site);
    Task<> take_disks(size_t site);
    bool can_be_taken(size_t site) const;
    Task<> reap();
    Task<> tick();
    Task<> keep_started();
    bool is_over(size_t from) const;
    bool owns_all(size_t site) const;

    const uint64_t seed_;
    const Rule broken_;
    const bool trace_;
    Probes& probes_;
    std::array<std::vector<std::unique_ptr<Disk>>, sites> disks_;
    std::unique_ptr<Vm> vm_;
    std::vector<uint64_t> looked_at_; // changes() of the replica's image, by disk
    bool records_changed_ = true;
    unsigned faults_under_way_ = 0;
    std::string migration_; // of the present attempt
    uint64_t generation_ = 0;
    bool source_gone_ = false; // for good; what was to be done without it is done
};

} // namespace drover::sim
