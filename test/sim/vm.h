// SPDX-License-Identifier: GPL-2.0-or-later
// The guest: its requests, and what it may expect of its disks after each answer.
#pragma once

#include "test/sim/plugin.h"

namespace drover::sim {

inline constexpr uint64_t max_guest_request = 20'480;

// What a disk may hold, as its guest knows it.
class Expectation {
public:
    explicit Expectation(const Content& content) : now_(content), flushed_(content) {}

    // A request is under way; it has been answered, and the disk holds this now.
    void begin(const std::shared_ptr<GuestRequest>& request);
    void end(const std::shared_ptr<GuestRequest>& request, const Content& disk);

    // After the guest was paused or its disk's process died: every answered write is there, and of
    // those under way any part. The offset of the first byte that is wrong; nullopt: none.
    std::optional<uint64_t> wrong_now(const Content& disk) const;
    // After the guest was lost with its host: every write is there that a flush came after, any
    // part of the others may be.
    std::optional<uint64_t> wrong_after_loss(const Content& disk) const;
    // A guest that starts anew takes what it finds; unless its host was down since, that need not
    // be on storage.
    void start_anew(const Content& disk, bool host_was_down);

private:
    struct Change {
        uint64_t offset;
        Content after;
        uint64_t number;
    };
    using Pending = std::shared_ptr<GuestRequest>;

    bool under_way(uint64_t at) const;

    Content now_, flushed_;
    std::deque<Change> loose_;  // answered, no flush after them yet
    std::vector<Change> lossy_; // a flush after them has failed, for the guest to see
    uint64_t doubtful_ = 0;     // the last number of those
    uint64_t numbers_ = 0;
    std::vector<std::pair<Pending, uint64_t>> pending_; // and the numbers_ when it began
};

// Where the VM stands at a site.
enum class Machine {
    none,
    running,
    paused,   // with its memory
    incoming, // waits for memory
    loaded,   // has it, paused
};

class Vm {
public:
    explicit Vm(World& world);

    std::array<Machine, sites> at{};
    uint64_t requests_made = 0;
    // New requests are not made: its operator's doing, not the VM's.
    bool held = false;
    bool one_more = false; // ... but for this one

    void start_guests();
    // Starts without memory: boots. With it: goes on where it was.
    void boot(size_t site);
    void resume(size_t site);
    void pause(size_t site);
    // What it wrote at a site that an operator has given up is lost, with his consent.
    void forgive() { forgiven_ = true; }
    // Its memory has come from there.
    void load(size_t site, size_t from);
    // Gone with its memory: its hypervisor or its host has died.
    void lose(size_t site);
    bool idle() const { return under_way_ == 0; }
    // What a VM that was lost had under way at the site is done with: none of it can meet the
    // requests of the next one.
    bool has_settled(size_t site);
    std::optional<size_t> runs_at() const;
    size_t home() const;
    const Expectation& expects(size_t disk) const { return *expects_[disk]; }

private:
    void begin_to_run(size_t site, bool anew);
    Task<> guest();
    Task<> perform(size_t index, std::shared_ptr<GuestRequest> request);
    std::shared_ptr<GuestRequest> make_request(size_t index);

    World& world_;
    struct Sent {
        size_t site;
        std::weak_ptr<Plugin> plugin;
        std::shared_ptr<GuestRequest> request;
        uint64_t life;
    };

    std::vector<std::unique_ptr<Expectation>> expects_;
    std::vector<Sent> sent_; // those that are under way among them
    unsigned under_way_ = 0;
    bool forgiven_ = false;
    uint64_t host_boot_ = 0; // of its host when it began to run
    uint64_t life_ = 1;      // a boot ends what was under way before it
    size_t last_site_ = 0;
    // How often it was started anywhere; and of the memory at each site, after which start.
    uint64_t runs_ = 0;
    std::array<uint64_t, sites> memory_{};
};

} // namespace drover::sim
