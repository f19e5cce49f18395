// SPDX-License-Identifier: GPL-2.0-or-later
// Ends connections that were accepted and never come to open an export: nbdkit 1.32 waits for the
// end of a handshake for as long as it takes, with a descriptor and a thread for each, and whoever
// reaches the port can begin one, without any key.
#pragma once

#include "common/unique_fd.h"

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include <dirent.h>

namespace drover {

class HandshakeWatch {
public:
    // With a thread: not before a fork.
    explicit HandshakeWatch(std::chrono::milliseconds limit);
    ~HandshakeWatch();
    HandshakeWatch(const HandshakeWatch&) = delete;
    HandshakeWatch& operator=(const HandshakeWatch&) = delete;

    // peer: the bytes of the address at the other end, which tells the connection.
    void came(const std::string& peer);
    void opened(const std::string& peer);

private:
    using Clock = std::chrono::steady_clock;
    struct CloseDirectory {
        void operator()(DIR* directory) const noexcept { ::closedir(directory); }
    };
    void run() noexcept;
    void look();
    // False if it could not look at every descriptor.
    bool shut_down(const std::set<std::string>& peers);

    const std::chrono::milliseconds limit_;
    // All that a look takes: there may be no other descriptor when it is needed most.
    const std::unique_ptr<DIR, CloseDirectory> descriptors_; // /proc/self/fd
    UniqueFd look_; // another of whatever is being looked at; of that folder in between
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<std::string, Clock::time_point> waiting_; // until when
    bool over_ = false;
    std::thread thread_;
};

} // namespace drover
