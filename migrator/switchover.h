// SPDX-License-Identifier: GPL-2.0-or-later
// The switchover: from "disks ready, memory nearly there" to "it runs at the destination"
// (docs/design.md, 4). No sockets, files or clock: only the parts of sides.h, so that the
// simulation runs this same code. What it can't bring to its end is for recovery.h.
//
//   source                          destination
//   finish memory, quiesce all  ─▶  loaded            the VM is paused; every failure leads back
//   fence, the first disk first                       from here neither side runs,
//                                   promote, run      up to here
#pragma once

#include "migrator/sides.h"

#include <functional>

namespace drover {

struct SwitchoverParts {
    std::vector<DiskAtSource*> disks; // the first one's record decides for all
    VmAtSource* vm = nullptr;
    DestinationSide* there = nullptr; // null: plain, or nobody knows (any more) how to ask it
    bool plain = false;               // a plain NBD server, which nobody promotes or asks
    StepLog* steps = nullptr;
    bool forwards = false; // the client stays and reaches the new owner through its disk here
};

enum class Moment {
    memory_sent,
    handed_over,
    fencing, // told before the first fence is sent: the last chance to stop, by throwing
    fenced,
    promoted,
    running,
};

class Switchover {
public:
    Switchover(SwitchoverParts parts, std::function<void(Moment)> tell)
        : parts_(std::move(parts)), tell_(std::move(tell)) {}
    Switchover(const Switchover&) = delete;
    Switchover& operator=(const Switchover&) = delete;

    // Once. Throws what keeps it from its end.
    asio::awaitable<void> run();

    // Of the disks, in their order.
    const std::vector<uint64_t>& handover_lsns() const { return lsns_; }

private:
    asio::awaitable<void> hand_over();
    asio::awaitable<void> finish_memory_and_quiesce();
    asio::awaitable<void> quiesce_all();
    asio::awaitable<void> quiesce_disk(size_t index);
    asio::awaitable<void> fence_all();
    asio::awaitable<void> fence_disk(size_t index, std::string first_token);
    asio::awaitable<void> promote();

    const SwitchoverParts parts_;
    const std::function<void(Moment)> tell_;
    std::vector<std::string> quiesces_; // by disk
    std::vector<uint64_t> lsns_;
    std::string token_;
};

// The disks that have been forwarded to a new owner reach it from now on.
asio::awaitable<void> forward_all(std::vector<DiskAtSource*> disks);

} // namespace drover
