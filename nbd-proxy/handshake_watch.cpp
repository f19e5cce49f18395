// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/handshake_watch.h"

#include "common/unique_fd.h"

#include <charconv>
#include <filesystem>
#include <set>

#include <fcntl.h>
#include <sys/socket.h>

namespace drover {
namespace {

// nbdkit does not say which descriptor a connection has: found by the address at its other end.
void shut_down(const std::set<std::string>& peers) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
        const std::string name = entry.path().filename();
        int number = -1;
        std::from_chars(name.data(), name.data() + name.size(), number);
        // One of our own, so that it is no other socket between the look and the deed.
        const UniqueFd fd(::fcntl(number, F_DUPFD_CLOEXEC, 0));
        sockaddr_storage address{};
        socklen_t length = sizeof address;
        if (fd && ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
            peers.contains({reinterpret_cast<const char*>(&address), length})) {
            ::shutdown(fd.get(), SHUT_RDWR); // its thread notices, and ends
        }
    }
}

} // namespace

HandshakeWatch::HandshakeWatch(std::chrono::milliseconds limit)
    : limit_(limit), thread_([this] { run(); }) {}

HandshakeWatch::~HandshakeWatch() {
    {
        const std::lock_guard lock(mutex_);
        over_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void HandshakeWatch::came(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    waiting_[peer] = Clock::now() + limit_;
    changed_.notify_all();
}

void HandshakeWatch::opened(const std::string& peer) {
    const std::lock_guard lock(mutex_);
    waiting_.erase(peer);
}

void HandshakeWatch::run() {
    std::unique_lock lock(mutex_);
    while (!over_) {
        // Looked at a few times within the limit, not for each connection.
        changed_.wait(lock, [this] { return over_ || !waiting_.empty(); });
        changed_.wait_for(lock, limit_ / 4, [this] { return over_; });
        const Clock::time_point now = Clock::now();
        std::set<std::string> late;
        std::erase_if(waiting_, [&](const auto& each) {
            return each.second <= now && late.insert(each.first).second;
        });
        if (!late.empty()) {
            // With the lock: a new connection from such an address is not there yet.
            shut_down(late);
        }
    }
}

} // namespace drover
