// SPDX-License-Identifier: GPL-2.0-or-later
// The destination's side of one migration: what the agent's methods do. Every value from the peer
// is checked against this site's configuration before it is used. Whom the VM belongs to is
// takeover.h's. On the one thread of its executor; one call at a time.
#pragma once

#include "migrator/destination_disk.h"
#include "migrator/driver.h"
#include "migrator/finding.h"
#include "migrator/journal.h"
#include "migrator/run_lock.h"
#include "migrator/takeover.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace drover {

class Destination {
public:
    // event: "hypervisor-exited", "disk-exited"; and what it says.
    using Lost = std::function<void(const std::string& event, const std::string& detail)>;

    // What the operator should know of.
    using Warn = std::function<void(const std::string& text)>;

    // site outlives it.
    // acts_as: what the VM's lock says has it, "agent" or "recover".
    Destination(asio::any_io_executor executor,
                const SiteConfig& site,
                std::string acts_as,
                Lost lost,
                Warn warn);
    ~Destination();

    // Whether an agent has the lock that has heard nothing for longest_silence: whoever needs the
    // VM's name may end it.
    static bool is_forgotten(const RunLock& lock);

    // The coordinator lives: others see by the VM's lock when that was last known.
    void heard() const;

    // The methods of docs/control.md. Each throws Error.
    rpc::Json check(const rpc::Json& params);
    asio::awaitable<rpc::Json> look_at_segment(rpc::Json params);
    // All that `check` finds and more, one beside the other, instead of the first as an Error.
    rpc::Json survey(const rpc::Json& params);
    asio::awaitable<rpc::Json> prepare(rpc::Json params);
    asio::awaitable<rpc::Json> take_over(rpc::Json params);
    asio::awaitable<rpc::Json> incoming(rpc::Json params);
    asio::awaitable<rpc::Json> memory_again(rpc::Json params);
    asio::awaitable<rpc::Json> open_tunnels(rpc::Json params);
    asio::awaitable<rpc::Json> loaded();
    asio::awaitable<rpc::Json> promote(rpc::Json params);
    asio::awaitable<rpc::Json> run(rpc::Json params);
    asio::awaitable<rpc::Json> status();
    asio::awaitable<rpc::Json> refuse();
    asio::awaitable<rpc::Json> supersede(rpc::Json params);
    rpc::Json forward_key();
    asio::awaitable<rpc::Json> finish();

    // For a recovery at this side (destination_recovery.h), after take_over().
    // Promoted, but some disk holds its writes since it was started anew.
    bool is_held() const;
    // The first disk was taken by force; the others may not have been yet.
    bool was_forced() const;
    // Not refused, and each image is a state that the source's disk has been in.
    bool is_whole() const;
    // All of them at the same moment.
    bool is_of_one_moment() const;
    // The VM runs, or was left paused as it was.
    bool runs() const { return runs_; }
    // What the first disk's promotion has decided: the other disks, and the VM.
    asio::awaitable<void> promote_rest();
    // The generation that they have then. The VM does not run, unless it has been promoted before.
    asio::awaitable<uint64_t> promote_by_force();
    asio::awaitable<void> supersede_at(uint64_t generation);

    // The coordinator has gone: what was promoted goes on. What was not is refused and removed,
    // unless it is a whole state of the VM's disks: that stays, with nothing running, until
    // somebody who knows what became of the source decides. Throws what could not be cleaned up.
    asio::awaitable<void> abandon();

private:
    using Json = rpc::Json;
    class Vm;

    enum class Stage { blank, acting, over };

    void require_acting(const char* method) const;
    void require_not_promoted(const char* method) const;
    asio::awaitable<void> lock(milliseconds patience);
    DestinationDisk::Events disk_events() const;
    void make_disks();
    void find_old_images();
    void set_bases(const Json& bases);
    void refuse_own_vm() const;
    void survey_disks(Findings& found) const;
    void survey_hypervisor(Findings& found) const;
    bool is_known_here() const;
    void make_takeover();
    void make_hypervisor();
    asio::awaitable<void> adopt_hypervisor();
    asio::awaitable<void> end_leftover();
    asio::awaitable<void> remove_all();
    asio::awaitable<void> put_down();
    asio::awaitable<void> end_journal();
    asio::awaitable<void> take_frames_in() const;
    void announce() const;
    asio::awaitable<void> settle(bool here) const;
    void keep_vm_file() const;
    void try_to_keep_vm_file() const;
    bool has_hypervisor() const { return !disk_only_ && vm_.hypervisor != "none"; }

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const std::string acts_as_;
    Lost lost_;
    Warn warn_;
    Stage stage_ = Stage::blank;
    std::optional<RunLock> lock_;
    VmDescription vm_;
    std::string migration_, psk_key_;
    bool disk_only_ = false;
    bool runs_ = false;
    std::vector<std::unique_ptr<DestinationDisk>> disks_;
    std::optional<Listener> memory_port_; // kept until the hypervisor takes it
    uint16_t memory_port_number_ = 0;
    std::unique_ptr<IncomingVm> hypervisor_;
    std::unique_ptr<Vm> takeover_vm_;
    std::unique_ptr<StepLog> journal_;
    std::unique_ptr<Takeover> takeover_;
};

} // namespace drover
