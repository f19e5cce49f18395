// SPDX-License-Identifier: GPL-2.0-or-later
// The driver for QEMU (7.2 or newer) by QMP. The order of things, each step by event:
//
//   source       migrate; ... STOP, "pre-switchover" [paused]; migrate-continue; "completed"
//   destination  migrate-incoming; ...               "completed" [loaded, paused: -S]; cont
//
// "completed" at the source says that everything is sent and the block devices are inactive,
// not that anybody has loaded it. `cont` at the source takes the devices back from there.
//
// With post-copy both are "postcopy-active" instead, the destination as soon as it listens for
// pages, a moment before it is paused; "completed" comes when all of them are there. Until the
// guest runs at the destination `migrate_cancel` leads back to the source (QEMU 7.2, tried), unless
// the link has broken ("postcopy-paused"): then nothing does, and only another link leads on.
#pragma once

#include "common/process.h"
#include "migrator/driver.h"
#include "migrator/qmp.h"

#include <optional>

namespace drover {

class QemuOutgoing : public OutgoingVm {
public:
    // disks: the sockets of the VM's disks, by their names.
    QemuOutgoing(std::string vm,
                 std::string monitor,
                 std::string key_dir,
                 std::map<std::string, std::string> disks);
    ~QemuOutgoing() override;

    asio::awaitable<void> describe(HypervisorLost lost) override;
    asio::awaitable<Inspection> inspect() override;
    std::vector<std::string> warnings() const override { return warnings_; }
    nlohmann::json notes() const override;
    asio::awaitable<bool> reattach(nlohmann::json notes) override;
    bool has_memory() const override { return true; }
    std::string state() const override { return run_state_; }
    void require(const MemoryWays& ways) const override { ways.check(); }
    asio::awaitable<void> start_outgoing(MemoryLink link, MemoryTuning tuning) override;
    asio::awaitable<void> tune(MemoryTuning tuning) override;
    asio::awaitable<MemoryProgress> progress() override;
    asio::awaitable<void> wait_paused(Deadline deadline) override;
    bool was_paused() const override { return paused_by_operator_; }
    asio::awaitable<void> finish_memory(milliseconds patience) override;
    asio::awaitable<void> start_postcopy() override;
    asio::awaitable<MemoryRest> rest() override;
    asio::awaitable<void> send_again(MemoryLink link) override;
    void forget_rest() override { rest_is_lost_ = true; }
    asio::awaitable<void> cancel(milliseconds patience) override;
    asio::awaitable<void> destroy_source(milliseconds patience) override;

private:
    asio::awaitable<void> connect();
    asio::awaitable<void> connect_to_running();
    void throw_if_unfit(const std::string& going) const;
    asio::awaitable<void> look_at_state(Findings& found);
    asio::awaitable<void> look_at_version(Findings& found, bool kvm);
    void on_event(const std::string& event, const Qmp::Json& data);
    void lose(const std::string& what);
    // Until the migration is in one of these states; what it is then.
    asio::awaitable<std::string> wait_status(std::vector<std::string> any, Deadline deadline);
    asio::awaitable<bool> is_needed();
    asio::awaitable<void> throw_if_failed();
    asio::awaitable<void> undo_leftover();
    asio::awaitable<void> look_for_lost_writes();
    asio::awaitable<void> remember_settings();
    asio::awaitable<void> put_back_settings();
    asio::awaitable<void> stop_migration();
    asio::awaitable<bool> ends_until(Deadline deadline);
    asio::awaitable<void> put_back_guest(Deadline deadline);
    asio::awaitable<void> yank_connections();
    asio::awaitable<void> command(std::string name);

    std::string vm_, monitor_, key_dir_;
    std::map<std::string, std::string> disks_;
    std::shared_ptr<Qmp> qmp_;
    HypervisorLost lost_;
    std::unique_ptr<Notifier> changed_;
    std::string run_state_ = "unknown";
    std::string status_; // of the migration, as the last event said
    std::string lost_reason_;
    std::vector<std::string> warnings_;
    bool paused_by_operator_ = false;
    bool stopped_ = false; // STOP was seen, and not yet who did it
    bool started_ = false; // something is to be put back
    bool only_looks_ = false;
    bool postcopy_ = false, rest_is_lost_ = false;
    std::optional<Qmp::Json> old_parameters_, old_capabilities_;
};

class QemuIncoming : public IncomingVm {
public:
    explicit QemuIncoming(IncomingSpec spec);
    ~QemuIncoming() override;

    asio::awaitable<void>
    start_incoming(MemoryLink link, HypervisorLost lost, milliseconds patience) override;
    asio::awaitable<void> wait_loaded(Deadline deadline) override;
    asio::awaitable<MemoryWait> accept_again(MemoryLink link) override;
    asio::awaitable<bool> adopt(milliseconds patience) override;
    bool ready() const override { return loaded_ && lost_reason_.empty(); }
    bool may_have_run() const override { return may_have_run_; }
    asio::awaitable<void> run(bool paused, milliseconds patience) override;
    asio::awaitable<void> destroy(milliseconds patience) override;
    std::string state() const override { return state_; }

private:
    asio::awaitable<void> connect(milliseconds patience);
    asio::awaitable<void> wait_status(std::string wanted, Deadline deadline);
    asio::awaitable<void> look_at_state();
    asio::awaitable<void> wait_for_monitor(Deadline deadline);
    void on_event(const std::string& event, const Qmp::Json& data);
    void lose(const std::string& what);
    std::string end_of_log() const;

    UniqueFd find_process() const;

    IncomingSpec spec_;
    std::optional<Child> child_; // ours
    UniqueFd process_;           // a pidfd, of ours or of an adopted one
    bool loaded_ = false, may_have_run_ = false;
    uint64_t log_start_ = 0; // where this run's lines begin
    std::shared_ptr<Qmp> qmp_;
    HypervisorLost lost_;
    std::unique_ptr<Notifier> changed_;
    std::string state_ = "not started";
    std::string status_;
    std::string lost_reason_;
};

} // namespace drover
