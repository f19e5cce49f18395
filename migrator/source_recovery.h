// SPDX-License-Identifier: GPL-2.0-or-later
// A recovery (recovery.h) at the source with its real parts: for `drover recover`, for the
// guardian, and for those that find at their start that a migration has not come to its end.
#pragma once

#include "migrator/cli.h"
#include "migrator/driven_vm.h"
#include "migrator/hooks.h"
#include "migrator/journal.h"
#include "migrator/peer_agent.h"
#include "migrator/recovery.h"
#include "migrator/source_disk.h"

#include <memory>
#include <string>
#include <vector>

namespace drover {

class SourceRecovery {
public:
    // How it came out, and what to say of it.
    struct Result {
        Verdict verdict = Verdict::undecided;
        bool forwards = false; // there, and its client goes on here all the same
        bool owed = false;     // something of it remains to be done, and can be tried again
        bool stuck = false;    // here, but the VM's hypervisor, which is there, does not run it
        std::string text;
        std::vector<std::string> troubles;
    };

    // Site and VM outlive it. The caller has the VM's lock. host: instead of the journal's, or
    // where there is none.
    SourceRecovery(asio::any_io_executor executor,
                   const SiteConfig& site,
                   const VmFile& vm,
                   PeerOptions peer,
                   bool force);
    ~SourceRecovery();

    // Throws what keeps it from its beginning.
    asio::awaitable<Result> run();

    // A migration from here has not come to its end, as far as the journal or the first disk's
    // record say.
    static bool is_needed(const std::string& vm, const std::string& first_disk);

private:
    using Json = rpc::Json;

    void read_journal_of_vm();
    asio::awaitable<void> end_leftovers();
    asio::awaitable<void> make_parts();
    asio::awaitable<void> conclude_here(const Recovery& recovery);
    asio::awaitable<void> see_rest_across();
    asio::awaitable<void> conclude_there(const Recovery& recovery);
    void conclude_undecided(const Recovery& recovery);
    asio::awaitable<void> hook(std::string name, std::vector<std::string> command);
    asio::awaitable<void> attempt(asio::awaitable<void> task);
    asio::awaitable<void> settle_names(bool here);
    HookEnvironment hook_environment() const;
    std::string there() const { return peer_.to_uri.empty() ? peer_.host : peer_.to_uri; }

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const VmFile& vm_;
    PeerOptions peer_;
    const bool force_;
    Notifier changed_;
    std::unique_ptr<StepLog> steps_;
    JournalContent journal_; // of the migration; empty: there is none
    std::string migration_;
    bool disk_only_ = false, plain_ = false;
    std::vector<std::unique_ptr<SourceDisk>> disks_;
    std::unique_ptr<OutgoingVm> hypervisor_;
    std::unique_ptr<DrivenVm> vm_here_;
    std::unique_ptr<PeerAgent> agent_;
    SwitchoverParts parts_;
    Result result_;
};

} // namespace drover
