// SPDX-License-Identifier: GPL-2.0-or-later
// The driver for Xen's PV and PVH guests. Xen's own libraries do the saving and restoring
// (xen_host.h); their stream goes through a link of ours (memory_stream.h). The order of things:
//
//   source       save, live; ... suspended [paused]; all is written; the disks' devices are quiet
//   destination  restore; ...   restored [loaded, paused]; rename; unpause
//
// The source's domain stays, suspended, with its memory, until it is destroyed; until then it can
// go on. What comes in is called NAME--incoming until it may run: nothing else is ever destroyed
// here.
#pragma once

#include "migrator/driver.h"
#include "migrator/drivers/job.h"
#include "migrator/drivers/memory_stream.h"
#include "migrator/drivers/xen_host.h"

#include <memory>
#include <optional>

namespace drover {

class XenOutgoing : public OutgoingVm {
public:
    // config: an xl configuration to check it against, or "".
    XenOutgoing(const VmFile& vm, std::string config);
    ~XenOutgoing() override;

    asio::awaitable<void> describe(HypervisorLost lost) override;
    asio::awaitable<Inspection> inspect() override;
    std::map<std::string, std::string> values() const override;
    nlohmann::json notes() const override;
    asio::awaitable<bool> reattach(nlohmann::json notes) override;
    bool has_memory() const override { return true; }
    std::string state() const override { return state_; }
    asio::awaitable<void> start_outgoing(MemoryLink link, MemoryTuning tuning) override;
    asio::awaitable<void> tune(MemoryTuning tuning) override;
    asio::awaitable<MemoryProgress> progress() override;
    asio::awaitable<void> wait_paused(Deadline deadline) override;
    bool was_paused() const override { return false; }
    asio::awaitable<void> finish_memory(milliseconds patience) override;
    asio::awaitable<void> cancel(milliseconds patience) override;
    asio::awaitable<void> destroy_source(milliseconds patience) override;

private:
    void open();
    void find();
    void look_at_domain();
    void check_config() const;
    void check_domain() const;
    void check_tracking() const;
    void check_disks(const std::vector<XenDisk>& disks, const std::string& where) const;
    asio::awaitable<void> undo_leftover();
    void watch();
    void look();
    void throw_if_failed() const;

    const VmFile vm_;
    const std::string config_;
    std::unique_ptr<XenHost> host_;
    uint32_t id_ = 0;
    XenDomain domain_;
    std::string state_ = "unknown";
    HypervisorLost lost_;
    bool started_ = false; // something is to be put back
    MemoryStream stream_;
    std::optional<asio::steady_timer> timer_;
    std::unique_ptr<Job> saving_; // uses what is above: it ends first
};

class XenIncoming : public IncomingVm {
public:
    explicit XenIncoming(IncomingSpec spec);
    ~XenIncoming() override;

    asio::awaitable<void>
    start_incoming(MemoryLink link, HypervisorLost lost, milliseconds patience) override;
    asio::awaitable<void> wait_loaded(Deadline deadline) override;
    asio::awaitable<bool> adopt(milliseconds patience) override;
    bool ready() const override { return loaded_; }
    bool may_have_run() const override { return may_have_run_; }
    asio::awaitable<void> run(bool paused, milliseconds patience) override;
    asio::awaitable<void> destroy(milliseconds patience) override;
    std::string state() const override { return state_; }

private:
    XenDomain domain() const;

    const IncomingSpec spec_;
    const std::string arriving_; // what it is called until it runs
    std::unique_ptr<XenHost> host_;
    std::optional<uint32_t> id_;
    uint32_t restored_ = 0; // its id, after the restore
    std::string state_ = "not started";
    bool loaded_ = false, may_have_run_ = false;
    std::shared_ptr<HypervisorLost> lost_; // to be told of a failure that nobody waits for
    MemoryStream stream_;
    std::unique_ptr<Job> restoring_; // uses what is above: it ends first
};

} // namespace drover
