// SPDX-License-Identifier: GPL-2.0-or-later
// What runs in the lab's guest. Static: the guest has no libraries.
//
//   lab-guest records RATE SIZE FILE...   appends RATE records (record.h) of SIZE bytes each second
//       to every FILE, fsyncs them, and only then tells the record's number, as a line of text, to
//       whoever is connected to port 7777. Echoes on port 7778. Takes commands on port 7779:
//       "poweroff" (exits 0, for init to turn the machine off), "status".
//   lab-guest dirty MIB RATE              rewrites MIB of memory at RATE MiB/s, for ever
//
// The echo has a process of its own, so that it tells how long the machine was away, not how long
// an fsync took.
#include "../record.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "lab-guest: %s: %s\n", what.c_str(), std::strerror(errno));
    std::exit(1);
}

uint64_t number_argument(const char* text) {
    char* end = nullptr;
    const uint64_t value = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0') {
        errno = EINVAL;
        fail(text);
    }
    return value;
}

int listen_on(uint16_t port) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (fd < 0 || ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 ||
        ::listen(fd, 16) < 0) {
        fail("port " + std::to_string(port));
    }
    return fd;
}

// One peer on a port: what it sent and what it has still to get.
struct Peer {
    int fd = -1;
    uint16_t port = 0;
    std::string in, out;
};

// The listening sockets and their peers.
class Network {
public:
    explicit Network(std::vector<uint16_t> ports) : ports_(std::move(ports)) {
        for (const uint16_t port : ports_) {
            listeners_.push_back(listen_on(port));
        }
    }

    // Waits for I/O until the deadline at the latest, and does it. What peers of a port sent is
    // in their `in` afterwards.
    void serve(std::optional<Clock::time_point> deadline) {
        std::vector<pollfd> polled;
        for (const int fd : listeners_) {
            polled.push_back({fd, POLLIN, 0});
        }
        for (const Peer& peer : peers_) {
            polled.push_back(
                {peer.fd, static_cast<short>(POLLIN | (peer.out.empty() ? 0 : POLLOUT)), 0});
        }
        timespec wait{};
        if (deadline) {
            const int64_t ns =
                std::max<int64_t>(0, std::chrono::nanoseconds(*deadline - Clock::now()).count());
            wait = {ns / 1'000'000'000, ns % 1'000'000'000};
        }
        if (::ppoll(polled.data(), polled.size(), deadline ? &wait : nullptr, nullptr) <= 0) {
            return;
        }
        const size_t known = peers_.size();
        for (size_t i = 0; i < listeners_.size(); ++i) {
            accept_from(i);
        }
        for (size_t i = 0; i < known; ++i) {
            if (polled[listeners_.size() + i].revents != 0) {
                receive(peers_[i]);
                flush(peers_[i]);
            }
        }
        std::erase_if(peers_, [](const Peer& peer) { return peer.fd < 0; });
    }

    // Queues a text for a peer and sends what its socket takes now.
    void send(Peer& peer, std::string_view text) {
        peer.out += text;
        flush(peer);
    }

    std::vector<Peer>& peers() { return peers_; }

private:
    void accept_from(size_t listener) {
        const int fd =
            ::accept4(listeners_[listener], nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            return;
        }
        const int on = 1;
        ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        peers_.push_back({fd, ports_[listener], {}, {}});
    }

    void receive(Peer& peer) {
        std::array<char, 4096> buffer;
        const ssize_t size = ::recv(peer.fd, buffer.data(), buffer.size(), 0);
        if (size > 0) {
            peer.in.append(buffer.data(), static_cast<size_t>(size));
        } else if (size == 0 || (errno != EAGAIN && errno != EINTR)) {
            close(peer);
        }
    }

    void flush(Peer& peer) {
        if (peer.fd < 0 || peer.out.empty()) {
            return;
        }
        const ssize_t size = ::send(peer.fd, peer.out.data(), peer.out.size(), MSG_NOSIGNAL);
        if (size > 0) {
            peer.out.erase(0, static_cast<size_t>(size));
        } else if (errno != EAGAIN && errno != EINTR) {
            close(peer);
        }
    }

    static void close(Peer& peer) {
        ::close(peer.fd);
        peer.fd = -1;
    }

    std::vector<uint16_t> ports_;
    std::vector<int> listeners_;
    std::vector<Peer> peers_;
};

// The same records in every file: a record counts when all of them have it.
class RecordFiles {
public:
    RecordFiles(size_t size, std::vector<std::string> paths) : size_(size) {
        for (const std::string& path : paths) {
            const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
            struct stat status {};
            if (fd < 0 || ::fstat(fd, &status) < 0) {
                fail(path);
            }
            fds_.push_back(fd);
            // After a restart it goes on behind what every file has.
            const uint64_t whole = static_cast<uint64_t>(status.st_size) / size_;
            last_ = fds_.size() == 1 ? whole : std::min(last_, whole);
        }
    }

    // Writes the next record and makes it durable; false: errno tells.
    bool append() {
        const std::vector<char> record = lab::make_record(last_ + 1, size_);
        const off_t offset = static_cast<off_t>(last_ * size_);
        for (const int fd : fds_) {
            const ssize_t written = ::pwrite(fd, record.data(), record.size(), offset);
            if (written != static_cast<ssize_t>(record.size())) {
                errno = written < 0 ? errno : ENOSPC;
                return false;
            }
        }
        for (const int fd : fds_) {
            if (::fsync(fd) < 0) {
                return false;
            }
        }
        ++last_;
        return true;
    }

    uint64_t last() const { return last_; }

private:
    size_t size_;
    std::vector<int> fds_;
    uint64_t last_ = 0;
};

// Runs until its parent ends.
[[noreturn]] void echo() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Network network({lab::echo_port});
    for (;;) {
        network.serve(std::nullopt);
        for (Peer& peer : network.peers()) {
            network.send(peer, std::exchange(peer.in, {}));
        }
    }
}

// Answers the commands that have come. True if one was "poweroff".
bool take_commands(Network& network, uint64_t last) {
    bool poweroff = false;
    for (Peer& peer : network.peers()) {
        size_t end = 0;
        while (peer.port == lab::commands_port && (end = peer.in.find('\n')) != std::string::npos) {
            const std::string command = peer.in.substr(0, end);
            peer.in.erase(0, end + 1);
            if (command == "poweroff") {
                poweroff = true;
                network.send(peer, "ok\n");
            } else if (command == "status") {
                network.send(peer, "last " + std::to_string(last) + "\n");
            } else {
                network.send(peer, "error unknown command\n");
            }
        }
    }
    return poweroff;
}

int records(uint64_t rate, size_t size, std::vector<std::string> paths) {
    if (rate == 0 || size < lab::record_size_min || size > lab::record_size_max || paths.empty()) {
        errno = EINVAL;
        fail("records RATE SIZE FILE...");
    }
    RecordFiles files(size, std::move(paths));
    Network network({lab::records_port, lab::commands_port});
    const Clock::duration interval = std::chrono::nanoseconds(1'000'000'000 / rate);
    Clock::time_point due = Clock::now();
    bool writing = true;
    for (;;) {
        network.serve(writing ? std::optional(due) : std::nullopt);
        if (take_commands(network, files.last())) {
            return 0;
        }
        if (!writing || Clock::now() < due) {
            continue;
        }
        // A disk that is slower than the rate sets the pace; nothing is made up for.
        due = std::max(due + interval, Clock::now());
        std::string text;
        if (files.append()) {
            text = std::to_string(files.last()) + "\n";
        } else {
            writing = false;
            text = "error " + std::string(std::strerror(errno)) + "\n";
            std::fprintf(stderr,
                         "lab-guest: record %llu: %s",
                         static_cast<unsigned long long>(files.last() + 1),
                         text.c_str());
        }
        for (Peer& peer : network.peers()) {
            if (peer.port == lab::records_port) {
                network.send(peer, text);
            }
        }
    }
}

[[noreturn]] void dirty(uint64_t mib, uint64_t mib_per_s) {
    constexpr size_t page = 4096, pages_per_mib = 256;
    std::vector<char> memory(std::max<uint64_t>(1, mib) << 20);
    const Clock::duration interval =
        std::chrono::nanoseconds(1'000'000'000 / std::max<uint64_t>(1, mib_per_s));
    Clock::time_point due = Clock::now();
    for (size_t offset = 0;; offset = (offset + page * pages_per_mib) % memory.size()) {
        for (size_t i = 0; i < pages_per_mib; ++i) {
            char volatile& byte = memory[offset + i * page];
            byte = static_cast<char>(byte + 1);
        }
        due = std::max(due + interval, Clock::now());
        std::this_thread::sleep_until(due);
    }
}

} // namespace

int main(int argc, char** argv) {
    const std::string verb = argc > 1 ? argv[1] : "";
    if (verb == "records" && argc > 4) {
        const pid_t child = ::fork();
        if (child == 0) {
            echo();
        }
        if (child < 0) {
            fail("fork");
        }
        return records(number_argument(argv[2]), number_argument(argv[3]), {argv + 4, argv + argc});
    }
    if (verb == "dirty" && argc == 4) {
        dirty(number_argument(argv[2]), number_argument(argv[3]));
    }
    std::fprintf(stderr,
                 "usage: lab-guest records RATE SIZE FILE...\n"
                 "       lab-guest dirty MIB RATE\n");
    return 2;
}
