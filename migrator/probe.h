// SPDX-License-Identifier: GPL-2.0-or-later
// Whether the source reaches the ports that a migration would use. For `drover check` the agent
// listens on as many of this site's ports as the migration will: whoever connects is sent the word
// of the one who asked, and a datagram that is that word is sent back. Nothing else is said there,
// and it ends with the agent.
#pragma once

#include "migrator/agent_params.h"
#include "migrator/async.h"
#include "migrator/config.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace drover {

// The agent's side. On the one thread of its executor, and gone before that is.
class ProbePort;
class Probe {
public:
    // The site outlives it.
    Probe(asio::any_io_executor executor, const SiteConfig& site);
    ~Probe();

    // The agent's method `probe` (docs/control.md); what was opened before is closed. Throws
    // Error(usage), also for more ports than a VM can need here, and Error(io) where none is free.
    nlohmann::json open(const nlohmann::json& params);

private:
    asio::any_io_executor executor_;
    const SiteConfig& site_;
    std::vector<std::unique_ptr<ProbePort>> ports_;
};

// From the source; both block, for `patience` at the longest. "" if it has answered with the word,
// else why not.
std::string
probe_tcp(const std::string& host, uint16_t port, const std::string& word, milliseconds patience);
std::string
probe_udp(const std::string& host, uint16_t port, const std::string& word, milliseconds patience);

} // namespace drover
