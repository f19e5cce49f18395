// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/rsh.h"

#include <cstdlib>

#include <signal.h>

namespace drover {

std::vector<std::string> split_words(std::string_view text) {
    std::vector<std::string> words;
    std::string word;
    bool in_word = false;
    char quote = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        const bool escapes = c == '\\' && quote != '\'' && i + 1 < text.size();
        if (escapes && (quote == 0 || text[i + 1] == '"' || text[i + 1] == '\\')) {
            word += text[++i];
            in_word = true;
        } else if (quote != 0) {
            if (c == quote) {
                quote = 0;
            } else {
                word += c;
            }
        } else if (c == '\'' || c == '"') {
            quote = c;
            in_word = true;
        } else if (c == ' ' || c == '\t' || c == '\n') {
            if (in_word) {
                words.push_back(std::exchange(word, {}));
            }
            in_word = false;
        } else {
            word += c;
            in_word = true;
        }
    }
    if (quote != 0) {
        throw Error(ErrorKind::usage, fmt::format("'{}': a {} is not closed", text, quote));
    }
    if (in_word) {
        words.push_back(word);
    }
    return words;
}

std::vector<std::string> agent_command(const std::string& rsh, const std::string& host) {
    if (host.starts_with('-')) {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no name of a host", host));
    }
    std::vector<std::string> command = split_words(rsh);
    if (command.empty()) {
        throw Error(ErrorKind::usage, "--rsh is empty: a command such as ssh is expected");
    }
    constexpr std::string_view placeholder = "{host}";
    bool placed = false;
    for (std::string& word : command) {
        for (size_t at = 0; (at = word.find(placeholder, at)) != std::string::npos;
             at += host.size()) {
            word.replace(at, placeholder.size(), host);
            placed = true;
        }
    }
    if (!placed) {
        command.push_back(host);
    }
    const char* const remote = std::getenv("DROVER_REMOTE");
    for (std::string& word : split_words(remote != nullptr ? remote : "drover")) {
        command.push_back(std::move(word));
    }
    command.insert(command.end(), {"agent", "--stdio"});
    return command;
}

std::string data_address(const PeerOptions& peer) {
    if (!peer.data_address.empty()) {
        return peer.data_address;
    }
    const size_t at = peer.host.rfind('@');
    return at == std::string::npos ? peer.host : peer.host.substr(at + 1);
}

AgentProcess::AgentProcess(asio::any_io_executor executor,
                           const std::vector<std::string>& command,
                           std::string name,
                           RpcPeer::Events events) {
    SpawnOptions options;
    options.argv = command;
    options.pipe_stdin = true;
    options.pipe_stdout = true;
    options.inherit_stderr = true;
    options.own_session = true;
    child_ = spawn(options);
    peer_ = RpcPeer::create(std::move(executor),
                            std::move(name),
                            std::move(child_.stdout_pipe),
                            std::move(child_.stdin_pipe),
                            std::move(events));
}

AgentProcess::~AgentProcess() {
    peer_->close("the coordinator ends");
    if (!ended_) {
        child_.kill_group(SIGTERM);
    }
}

asio::awaitable<rpc::Json>
AgentProcess::call(std::string method, rpc::Json params, milliseconds patience) {
    return peer_->call(std::move(method), std::move(params), patience);
}

asio::awaitable<void> AgentProcess::end(milliseconds patience) {
    peer_->close("the coordinator ends");
    const Deadline deadline = Clock::now() + patience;
    const bool over = co_await wait_readable(child_.pidfd(), deadline);
    if (!over) {
        child_.kill_group(SIGTERM);
        const Deadline last = Clock::now() + milliseconds(1000);
        co_await wait_readable(child_.pidfd(), last);
    }
    child_.wait(milliseconds(0));
    ended_ = true;
}

} // namespace drover
