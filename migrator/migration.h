// SPDX-License-Identifier: GPL-2.0-or-later
// One migration from its first check to its end, at the source. What it does in each
// phase (phases.h) is in migration.cpp, but the switchover (switchover.h); its ends are in
// migration_end.cpp. On the one thread of its executor.
#pragma once

#include "migrator/dns_records.h"
#include "migrator/driven_vm.h"
#include "migrator/hooks.h"
#include "migrator/journal.h"
#include "migrator/peer_agent.h"
#include "migrator/recovery.h"
#include "migrator/report.h"
#include "migrator/segment.h"
#include "migrator/source_disk.h"

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <asio/cancellation_signal.hpp>

namespace drover {

class Migration {
public:
    // The three outlive it.
    Migration(asio::any_io_executor executor,
              const SiteConfig& site,
              const VmFile& vm,
              const MigrateOptions& options);
    ~Migration();

    // To its end; the exit status. Once. Nothing is thrown.
    asio::awaitable<int> run();

    // Ends it with `why`, if the first fence was not sent. false: too late, or it ends already.
    bool request_stop(const Error& why);
    // request_stop(), and waits until the VM goes on here. Throws Error(refused) when it is too
    // late.
    asio::awaitable<void> abort(std::string who);
    asio::awaitable<void> set(std::optional<uint64_t> downtime_ms,
                              std::optional<uint64_t> max_bandwidth);
    rpc::Json status() const;
    // From here on only the records say whose the VM is.
    bool may_be_fenced() const { return may_be_fenced_; }

private:
    using Json = rpc::Json;

    // The phases, in their order. Each throws what keeps it from its end.
    asio::awaitable<void> forward();
    asio::awaitable<void> check();
    asio::awaitable<void> check_peer();
    asio::awaitable<void> prepare();
    asio::awaitable<void> copy();
    asio::awaitable<void> revive(size_t index);
    std::chrono::seconds link_patience() const;
    void tell_of_links();
    Error not_ready(const std::string& since) const;
    asio::awaitable<void> memory();
    asio::awaitable<void> switch_over();
    asio::awaitable<void> verify();
    asio::awaitable<void> finish();

    // Parts of them.
    PeerAgent::Events agent_events();
    Json journal_facts() const;
    void note_agent(pid_t pid);
    void burn_above(uint64_t generation);
    asio::awaitable<void> open_disk(SourceDisk& disk);
    asio::awaitable<void> replicate(SourceDisk& disk, Json to, bool compare);
    asio::awaitable<void> prepare_agent();
    void add_bases(Json& params) const;
    asio::awaitable<void> incoming();
    asio::awaitable<void> look_for_tunnels();
    asio::awaitable<void> choose_network();
    asio::awaitable<SegmentEvidence> compare_segments(std::vector<NicSpec> nics);
    asio::awaitable<void> open_tunnels();
    asio::awaitable<void> show_memory();
    asio::awaitable<void> watch_memory();
    asio::awaitable<void> wait_paused();
    asio::awaitable<void> go_postcopy(std::string why);
    asio::awaitable<void> see_rest_across();
    asio::awaitable<void> get_forward_keys();
    void set_forward_targets();
    void tell_moment(Moment moment);
    void turn_network();
    asio::awaitable<void> survey_names();
    asio::awaitable<void> lower_ttls();
    void turn_names();
    asio::awaitable<void> verify_disk(size_t index);
    asio::awaitable<void> release();
    SwitchoverParts parts();

    // The ends.
    asio::awaitable<int> conclude_failed();
    asio::awaitable<void> go_back();
    asio::awaitable<void> wait_for_network();
    asio::awaitable<void> wait_for_names();
    asio::awaitable<void> restore_names();
    void tell_names(const std::exception_ptr& failure, const std::vector<std::string>& foreign);
    asio::awaitable<void> failed_hook();
    asio::awaitable<void> take_figures();
    asio::awaitable<void> take_memory_figures();
    asio::awaitable<void> attempt(std::string what, asio::awaitable<void> task);

    asio::awaitable<int> conclude();
    void step(PhaseEvent event);
    // What conclude() says last.
    void tell_failed(bool runs);
    void tell_unclean();
    void tell_died();
    void tell_stranded();
    void show_progress();
    void say(const std::string& level, const std::string& text) { printer_.message(level, text); }
    void finish_report();
    static std::string text_of(const std::exception_ptr& failure);
    uint64_t elapsed_ms() const;
    bool to_plain_server() const { return !options_.peer.to_uri.empty(); }
    bool forwards() const { return options_.disk_only && !options_.detach; }
    milliseconds patience(std::chrono::seconds setting) const { return setting; }
    HookEnvironment hook_environment() const;
    Json vm_description() const;
    MemoryTuning memory_tuning() const;
    std::string destination() const;

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const VmFile& vm_;
    const MigrateOptions& options_;
    ProgressPrinter printer_;
    MigrationReport report_;
    Phase phase_ = Phase::check;
    uint64_t downtime_ms_, max_bandwidth_;

    Notifier changed_; // any news of a disk, and the end
    asio::cancellation_signal stop_signal_;
    std::optional<Error> stop_reason_;
    std::exception_ptr failure_;
    bool forward_ended_ = false, over_ = false;
    std::vector<std::string> troubles_; // what clean-up could not do

    std::vector<std::unique_ptr<SourceDisk>> disks_;
    std::unique_ptr<OutgoingVm> hypervisor_;
    DrivenVm vm_here_;
    PeerAgent agent_;
    std::unique_ptr<Journal> journal_; // once something is touched
    bool agent_prepared_ = false;      // a refusal is owed, whatever came back
    std::string data_address_, psk_key_;
    bool wants_tunnel_ = false;              // to be opened by this migration
    bool stretched_ = false;                 // or the segment is to be told
    std::string network_why_;                // why network.mode = "auto" has chosen it; else empty
    bool leads_home_ = false;                // there are tunnels to the site that the VM came from
    Prepared prepared_;                      // by disk, as the next ones
    std::vector<Json> targets_;              // where its stream goes
    std::set<const SourceDisk*> links_lost_; // that the operator was told of
    std::vector<ForwardKey> forward_keys_;
    std::vector<uint64_t> handover_lsns_;
    std::optional<MemoryProgress> memory_;
    bool touched_ = false;          // past the check
    bool may_be_fenced_ = false;    // the first fence was sent, or is about to be
    bool turned_ = false;           // the post-switchover hook was started
    bool turning_ = false;          // and runs
    bool vm_lost_ = false;          // the guest ended by itself
    bool postcopy_ = false;         // begun
    std::string died_;              // why, of a VM that ran there without all of its memory
    std::optional<DnsState> names_; // as they were, where they are to change
    bool naming_ = false;           // and are being changed
    bool named_ = false;            // that was begun
    std::string turn_failure_, why_stranded_;
    bool stuck_ = false; // the disks are here, and the VM's hypervisor does not run it yet
};

} // namespace drover
