// SPDX-License-Identifier: GPL-2.0-or-later
// A JSON-RPC client for control sockets (docs/control.md) that blocks: for the short
// commands. The coordinator has an asynchronous one.
#pragma once

#include "common/json_rpc.h"
#include "common/unix_socket.h"

#include <chrono>
#include <optional>
#include <string>

#include <sys/types.h>

namespace drover {

class ControlClient {
public:
    using Deadline = std::chrono::steady_clock::time_point;

    // Throws Error(io) with the errno: ENOENT and ECONNREFUSED mean that nobody is there.
    explicit ControlClient(const std::string& path);

    // Throws the far side's Error, Error(timeout), or Error(peer) if the connection ends.
    // Notifications that come first are dropped.
    rpc::Json call(const std::string& method,
                   const rpc::Json& params,
                   std::optional<std::chrono::milliseconds> timeout = std::nullopt);

    // The next message; nullopt when the far side has closed. Throws Error(timeout) and
    // Error(usage) for what is no message.
    std::optional<rpc::Message> next(std::optional<Deadline> deadline = std::nullopt);

    // Of the process that listens.
    pid_t peer_pid() const;

private:
    std::string path_;
    UniqueFd fd_;
    rpc::LineBuffer lines_;
    uint64_t last_id_ = 0;
};

// `drover ctl`: SOCKET is a path, or VM/DISK. Prints the result, for `subscribe` each
// notification as well until the far side closes. Returns the exit status; throws Error.
int run_ctl(const std::string& socket, const std::string& method, const std::string& params);

} // namespace drover
