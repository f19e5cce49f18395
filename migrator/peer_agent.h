// SPDX-License-Identifier: GPL-2.0-or-later
// The agent at the destination, as the source speaks to it: the process that leads to it,
// and what a switchover and a recovery ask of it.
#pragma once

#include "migrator/agent_answers.h"
#include "migrator/agent_params.h"
#include "migrator/cli.h"
#include "migrator/rsh.h"
#include "migrator/sides.h"

#include <functional>
#include <memory>

namespace drover {

class PeerAgent : public DestinationSide {
public:
    // Each may be empty.
    struct Events {
        std::function<void(const std::string& level, const std::string& text)> log;
        // Something there has ended by itself, or the agent has.
        std::function<void(const std::string& what)> lost;
        // The process that leads to it has started.
        std::function<void(pid_t pid)> started;
    };
    // site and peer outlive it.
    PeerAgent(asio::any_io_executor executor,
              const SiteConfig& site,
              const PeerOptions& peer,
              Events events);

    // For take_over(): which migration, and the VM as `prepare` has it. Its disks are what answers
    // are expected to be about.
    void about(std::string migration, rpc::Json vm, bool disk_only);
    const DiskNames& disks() const { return disks_; }

    // Throws Error(refused) if it speaks another protocol.
    asio::awaitable<void> start();
    const std::string& program_version() const { return program_version_; } // after it
    // What comes back is for agent_answers.h to read.
    asio::awaitable<rpc::Json> call(std::string method, rpc::Json params, milliseconds patience);
    // How long it waits to hear from us before it takes us for dead. At first the agent's own
    // longest_silence.
    void wait_for_us(std::chrono::seconds patience);
    // Post-copy: its hypervisor waits for a new link, where this says, with this key.
    asio::awaitable<MemoryAgain> memory_again(std::string psk_key);
    bool connected() const { return process_ && !process_->closed(); }
    pid_t pid() const { return process_ ? process_->pid() : 0; }
    // Closes its input and waits for it to end. Nothing to do if it was not started.
    asio::awaitable<void> end();

    asio::awaitable<std::vector<DiskStanding>> take_over() override;
    asio::awaitable<void> loaded() override;
    asio::awaitable<void> promote(std::string token) override;
    asio::awaitable<void> run(bool paused) override;
    asio::awaitable<std::vector<std::string>> refuse() override;
    asio::awaitable<void> supersede(uint64_t generation) override;
    asio::awaitable<void> finish() override;

private:
    void beat();
    void tell_alive();
    void take_notice(const rpc::Request& request) const;
    asio::awaitable<rpc::Json>
    call_acting(std::string method, rpc::Json params, milliseconds patience);
    asio::awaitable<rpc::Json>
    call_once(std::string method, rpc::Json params, milliseconds patience);

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const PeerOptions& peer_;
    const Events events_;
    std::string migration_, program_version_;
    rpc::Json vm_;
    DiskNames disks_;
    bool disk_only_ = false;
    std::unique_ptr<AgentProcess> process_;
    std::unique_ptr<asio::steady_timer> beat_;
    std::chrono::seconds patience_ = longest_silence;
    bool doubtful_ = false; // it owes an answer: who asks again asks another one
    bool acts_ = false;     // for this migration: it has prepared it, or taken it over
};

} // namespace drover
