// SPDX-License-Identifier: GPL-2.0-or-later
// The ends of a VM's tunnels at this host (drover-tunnel(1)), one for each NIC with addresses.
// Their processes belong to nobody: they are found by their files, and asked through their control
// sockets, also by whoever comes after a migration that was killed. Which end it is says what it
// means for it that the VM is paused, runs here, or does not:
//
//              the VM is paused   it runs here        its migration is over: here / not here
//   home       divert             rollback            rollback, close / stays diverted
//   away       hold               resume              stays resumed   / close
//
// Where the VM's sites are one segment there is no tunnel, but whoever has it run may tell that
// segment for a while (segment.h): until it is let go, or is not here.
//
// Every call but those that give an awaitable blocks, and throws Error.
#pragma once

#include "migrator/async.h"
#include "migrator/config.h"
#include "migrator/finding.h"

#include <nlohmann/json.hpp>
#include <optional>

namespace drover {

struct TunnelEnd {
    std::string name;
    bool home = false;
    nlohmann::json status; // as it says it; null: its process does not answer
    std::string error;     // then: why
};

// The folders of the VM's NICs in $DROVER_RUN, by their names, VM.nicN, in the NICs' order.
std::vector<std::string> nic_folders(const std::string& vm);
// The bridge of this host that it is attached to.
const std::string& home_bridge(const NicSpec& nic);

// Those of which something is here. The order is that of the NICs.
std::vector<TunnelEnd> tunnel_ends(const std::string& vm);
// Whether there is one, at home (the VM is, or was, of this site) or away.
bool has_tunnel(const std::vector<TunnelEnd>& ends, bool home);

// For people: "home, diverted, link up, 3 connections". `status`: as it says it.
std::string tunnel_text(const nlohmann::json& status);

// For programs.
nlohmann::json tunnels_json(const std::vector<TunnelEnd>& ends);

struct TunnelKey {
    std::string user, key; // hexadecimal
};

// What keeps any end from being started here: problems, or nothing.
Findings tunnel_host_findings();
// What keeps the home ends of the VM from being started here: Error(usage).
void check_home_ends(const VmFile& vm);
// Starts the home end of a NIC and returns when it answers. It outlives this process.
void start_home_end(const SiteConfig& site,
                    const VmFile& vm,
                    size_t nic,
                    const TunnelKey& key,
                    const std::string& host,
                    uint16_t port);
// Likewise the away end, at the port of the VM; listens on `listener`.
void start_away_end(const SiteConfig& site,
                    const std::string& vm,
                    size_t nic,
                    const NicSpec& spec,
                    const TunnelKey& key,
                    const std::string& port,
                    int listener);
// Until all links are up: each end has heard of the other one.
void wait_for_links(const std::string& vm, std::chrono::seconds patience);

// The table above, from left to right.
asio::awaitable<void> let_tunnels_go(std::string vm);
asio::awaitable<void> take_tunnels_in(std::string vm);
// What was kept at the other end has come back, or its time is over.
asio::awaitable<void> wait_for_kept_frames(std::string vm);
// To the end, whatever fails; then throws what did.
asio::awaitable<void> settle_tunnels(std::string vm, bool here);

} // namespace drover
