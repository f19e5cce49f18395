// SPDX-License-Identifier: GPL-2.0-or-later
// The driver for VMs that Drover does not control: only the disks move.
#pragma once

#include "migrator/driver.h"

namespace drover {

class NoneOutgoing : public OutgoingVm {
public:
    asio::awaitable<void> describe(HypervisorLost lost) override;
    asio::awaitable<Inspection> inspect() override;
    nlohmann::json notes() const override { return nlohmann::json::object(); }
    asio::awaitable<bool> reattach(nlohmann::json notes) override;
    bool has_memory() const override { return false; }
    std::string state() const override { return "not controlled"; }
    asio::awaitable<void> start_outgoing(MemoryLink link, MemoryTuning tuning) override;
    asio::awaitable<void> tune(MemoryTuning tuning) override;
    asio::awaitable<MemoryProgress> progress() override;
    asio::awaitable<void> wait_paused(Deadline deadline) override;
    bool was_paused() const override { return false; }
    asio::awaitable<void> finish_memory(milliseconds patience) override;
    asio::awaitable<void> cancel(milliseconds patience) override;
    asio::awaitable<void> destroy_source(milliseconds patience) override;
};

class NoneIncoming : public IncomingVm {
public:
    asio::awaitable<void>
    start_incoming(MemoryLink link, HypervisorLost lost, milliseconds patience) override;
    asio::awaitable<void> wait_loaded(Deadline deadline) override;
    asio::awaitable<bool> adopt(milliseconds patience) override;
    bool ready() const override { return true; }
    bool may_have_run() const override { return false; }
    asio::awaitable<void> run(bool paused, milliseconds patience) override;
    asio::awaitable<void> destroy(milliseconds patience) override;
    std::string state() const override { return "none"; }
};

} // namespace drover
