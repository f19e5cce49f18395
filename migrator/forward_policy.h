// SPDX-License-Identifier: GPL-2.0-or-later
// Whether this host's packet filter lets frames pass from one port of a bridge to another one:
// Docker, ufw and others set a forward policy of drop, which reaches bridges too where
// br_netfilter has loaded its hooks.
#pragma once

#include "migrator/finding.h"

namespace drover {

// Which rules of which families see a bridge's frames.
struct BridgeHooks {
    bool ipv4 = false, ipv6 = false; // br_netfilter takes its frames through these
};

// A base chain of the forward hook that ends in drop.
struct DroppingChain {
    std::string family, table, name;
    bool may_accept = false; // it has rules that are not understood here, and may let frames pass
    std::string to_add;      // the command that lets the bridge's frames pass
    bool operator==(const DroppingChain&) const = default;
};

// ruleset: as nft's JSON has it. Those that a frame from `bridge` to itself meets, and in which no
// rule is seen that accepts all of these. Pure. Throws Error(io) for what is no ruleset.
std::vector<DroppingChain>
dropping_chains(const nlohmann::json& ruleset, const std::string& bridge, BridgeHooks hooks);

// This host's, for each bridge once: ok, warning (may_accept) or problem. whose: "the tunnel's
// frames", what they are for. Blocks. Needs CAP_NET_ADMIN: a note where that is missing.
Findings forward_findings(const std::vector<std::string>& bridges, const std::string& whose);

} // namespace drover
