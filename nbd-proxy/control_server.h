// SPDX-License-Identifier: GPL-2.0-or-later
// The control socket: JSON-RPC from the coordinator, the agent, or an
// operator's `drover ctl`. One thread accepts, one serves each connection.
#pragma once

#include "common/unique_fd.h"
#include "nbd-proxy/engine.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace drover {

class ControlServer {
public:
    // Binds the socket (mode 0600), replacing one that nobody listens on. `exit` is called after
    // `shutdown` was answered. Throws Error.
    ControlServer(Engine& engine, std::string path, std::function<void()> exit);
    // Ends every connection and removes the socket.
    ~ControlServer();
    ControlServer(const ControlServer&) = delete;
    ControlServer& operator=(const ControlServer&) = delete;

private:
    class Connection;

    void accept_all();
    void reap();

    Engine& engine_;
    const std::string path_;
    const std::function<void()> exit_;
    UniqueFd listener_, stop_;
    std::mutex mutex_;
    std::list<std::unique_ptr<Connection>> connections_;
    std::thread thread_;
};

} // namespace drover
