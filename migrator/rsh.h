// SPDX-License-Identifier: GPL-2.0-or-later
// The way to the agent: a command that gives a stdio pipe to it, as rsync has one.
#pragma once

#include "common/process.h"
#include "migrator/cli.h"
#include "migrator/rpc_peer.h"

#include <string>
#include <string_view>
#include <vector>

namespace drover {

// Words as a shell splits them (blanks, '...', "...", \), with no expansion of any kind.
// Throws Error(usage) at a quote that is not closed.
std::vector<std::string> split_words(std::string_view text);

// CMD HOST drover agent --stdio; or {host} replaced where CMD has it. $DROVER_REMOTE, of words,
// stands for "drover". Throws Error(usage) for a host that ssh would take for an option.
std::vector<std::string> agent_command(const std::string& rsh, const std::string& host);

// What a data link dials: HOST without "user@" where no address is given.
std::string data_address(const PeerOptions& peer);

// The agent's process (ssh), and the peer that speaks through it. Its stderr is ours. In a
// session of its own: Ctrl-C reaches the coordinator alone, which needs the agent to clean up.
class AgentProcess {
public:
    // Throws Error(io) if the command can't be started.
    AgentProcess(asio::any_io_executor executor,
                 const std::vector<std::string>& command,
                 std::string name,
                 RpcPeer::Events events);
    ~AgentProcess();
    AgentProcess(const AgentProcess&) = delete;
    AgentProcess& operator=(const AgentProcess&) = delete;

    asio::awaitable<rpc::Json> call(std::string method, rpc::Json params, milliseconds patience);
    void notify(const std::string& method, rpc::Json params) {
        peer_->notify(method, std::move(params));
    }
    bool closed() const { return peer_->closed(); }
    pid_t pid() const { return child_.pid(); }
    // Closes its input and waits for it to end; after `patience` it is ended.
    asio::awaitable<void> end(milliseconds patience);

private:
    Child child_;
    bool ended_ = false;
    std::shared_ptr<RpcPeer> peer_;
};

} // namespace drover
