// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/handshake_watch.h"

#include "common/error.h"

#include <charconv>
#include <cstring>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover {
namespace {

// dup3() itself is what a ThreadSanitizer watches, and takes for a race with whoever closes `from`.
bool duplicate(int from, int to) {
    return ::syscall(SYS_dup3, from, to, O_CLOEXEC) >= 0;
}

} // namespace

HandshakeWatch::HandshakeWatch(std::chrono::milliseconds limit)
    : limit_(limit), descriptors_(::opendir("/proc/self/fd")) {
    if (descriptors_ == nullptr) {
        throw_errno("/proc/self/fd");
    }
    look_.reset(::fcntl(::dirfd(descriptors_.get()), F_DUPFD_CLOEXEC, 0));
    if (!look_) {
        throw_errno("a descriptor for the connections to be watched");
    }
    thread_ = std::thread([this] { run(); });
}

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

// nbdkit does not say which descriptor a connection has: found by the address at its other end.
bool HandshakeWatch::shut_down(const std::set<std::string>& peers) {
    const int directory = ::dirfd(descriptors_.get());
    bool complete = true;
    ::rewinddir(descriptors_.get());
    for (errno = 0; const dirent* const entry = ::readdir(descriptors_.get()); errno = 0) {
        const char* const name = entry->d_name;
        int number = -1;
        std::from_chars(name, name + std::strlen(name), number);
        if (number < 0 || number == look_.get() || number == directory) {
            continue;
        }
        // One of our own, so that it is no other socket between the look and the deed. (When that
        // is closed a file's POSIX record locks would go, all that this process has of it; images
        // have OFD locks, everything else flock.)
        if (!duplicate(number, look_.get())) {
            complete &= errno == EBADF; // closed meanwhile
            continue;
        }
        sockaddr_storage address{};
        socklen_t length = sizeof address;
        if (::getpeername(look_.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
            peers.contains({reinterpret_cast<const char*>(&address), length})) {
            ::shutdown(look_.get(), SHUT_RDWR); // its thread notices, and ends
        }
    }
    complete &= errno == 0;
    duplicate(directory, look_.get()); // what it was last may be closed by its owner
    return complete;
}

void HandshakeWatch::look() {
    const Clock::time_point now = Clock::now();
    std::set<std::string> late;
    for (const auto& [peer, until] : waiting_) {
        if (until <= now) {
            late.insert(peer);
        }
    }
    // With the lock: a new connection from such an address is not there yet.
    if (!late.empty() && shut_down(late)) {
        std::erase_if(waiting_, [&](const auto& each) { return late.contains(each.first); });
    }
}

void HandshakeWatch::run() noexcept {
    std::unique_lock lock(mutex_);
    while (!over_) {
        // Looked at a few times within the limit, not for each connection.
        changed_.wait(lock, [this] { return over_ || !waiting_.empty(); });
        changed_.wait_for(lock, limit_ / 4, [this] { return over_; });
        try {
            look();
        } catch (...) {
            // No memory: perhaps at the next look.
        }
    }
}

} // namespace drover
