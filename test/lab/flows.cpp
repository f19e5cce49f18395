// SPDX-License-Identifier: GPL-2.0-or-later
// Many TCP connections whose every byte is checked, and their longest silence.
//
//   flows serve PORT
//   flows connect ADDRESS PORT COUNT [INTERVAL-MS [BULK]]
//   flows noise ADDRESS PORT COUNT      so many UDP datagrams of random bytes, half of them with
//   the
//                                       header of a DTLS record
//
// The client opens COUNT connections that send a numbered message each INTERVAL-MS (default 1000)
// and expect it back, and BULK (default 0) that carry a known sequence of bytes as fast as they
// may, the even ones down, the odd ones up. It says "open" when all are, goes on until SIGTERM, and
// prints a line of JSON. `silence_ms`: the longest time for which an echo connection that waited
// for an answer heard nothing, or a bulk connection got no byte on. Exit status 1 if a connection
// broke or a byte was wrong.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include <linux/tcp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

constexpr size_t message_size = 64, chunk = 16384;

uint64_t now_ms() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

[[noreturn]] void die(const char* what) {
    std::perror(what);
    std::exit(2);
}

uint8_t byte_at(uint64_t offset) {
    return static_cast<uint8_t>((offset * 0x9e3779b97f4a7c15ULL) >> 56);
}

// Both directions of the bulk connections.
struct Sequence {
    uint64_t offset = 0;

    // Sends what goes; -1 if the connection broke.
    int send_more(int fd) {
        uint8_t bytes[chunk];
        for (;;) {
            for (size_t i = 0; i < chunk; ++i) {
                bytes[i] = byte_at(offset + i);
            }
            const ssize_t sent = ::send(fd, bytes, chunk, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent < 0) {
                return errno == EAGAIN ? 0 : -1;
            }
            offset += static_cast<uint64_t>(sent);
        }
    }
    bool check(const uint8_t* bytes, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            if (bytes[i] != byte_at(offset + i)) {
                return false;
            }
        }
        offset += size;
        return true;
    }
};

void raise_limit() {
    rlimit limit{};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

sockaddr_storage address_of(const char* host, const char* port, socklen_t& size) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host, port, &hints, &found) != 0) {
        die("address");
    }
    sockaddr_storage storage{};
    std::memcpy(&storage, found->ai_addr, found->ai_addrlen);
    size = found->ai_addrlen;
    ::freeaddrinfo(found);
    return storage;
}

void watch(int epoll, int fd, uint32_t events, bool add) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll, add ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) != 0) {
        die("epoll_ctl");
    }
}

// ---- the server

struct Served {
    char kind = 0; // 'E' echo, 'D' down, 'U' up
    Sequence sequence;
    std::string unsent;
};

// False: the connection is to be closed.
bool serve_one(int epoll, int fd, Served& served) {
    uint8_t bytes[chunk];
    for (;;) {
        if (served.kind == 'D' || !served.unsent.empty()) {
            break;
        }
        const ssize_t size = ::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (size <= 0) {
            if (size < 0 && errno == EAGAIN) {
                break;
            }
            return false;
        }
        size_t from = 0;
        if (served.kind == 0) {
            served.kind = static_cast<char>(bytes[0]);
            from = 1;
        }
        const auto left = static_cast<size_t>(size) - from;
        if (served.kind == 'U' && !served.sequence.check(bytes + from, left)) {
            std::fprintf(stderr,
                         "flows: wrong bytes at %llu\n",
                         static_cast<unsigned long long>(served.sequence.offset));
            return false;
        }
        if (served.kind == 'E') {
            served.unsent.append(reinterpret_cast<char*>(bytes) + from, left);
            const ssize_t sent =
                ::send(fd, served.unsent.data(), served.unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent > 0) {
                served.unsent.erase(0, static_cast<size_t>(sent));
            }
        }
    }
    if (served.kind == 'D' && served.sequence.send_more(fd) < 0) {
        return false;
    }
    if (!served.unsent.empty()) {
        const ssize_t sent =
            ::send(fd, served.unsent.data(), served.unsent.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) {
            return false;
        }
        served.unsent.erase(0, static_cast<size_t>(std::max<ssize_t>(sent, 0)));
    }
    const bool writes = served.kind == 'D' || !served.unsent.empty();
    watch(epoll, fd, EPOLLIN | (writes ? EPOLLOUT : 0U), false);
    return true;
}

int serve(const char* port) {
    raise_limit();
    socklen_t size = 0;
    const sockaddr_storage address = address_of("::", port, size);
    const int listener = ::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    const int yes = 1;
    ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        ::listen(listener, 4096) != 0) {
        die("listen");
    }
    const int epoll = ::epoll_create1(0);
    watch(epoll, listener, EPOLLIN, true);
    std::unordered_map<int, Served> connections;
    for (;;) {
        epoll_event events[256];
        const int count = ::epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; ++i) {
            const int fd = events[i].data.fd;
            if (fd == listener) {
                const int peer = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
                if (peer >= 0) {
                    connections[peer];
                    watch(epoll, peer, EPOLLIN, true);
                }
            } else if (!serve_one(epoll, fd, connections[fd])) {
                ::close(fd);
                connections.erase(fd);
            }
        }
    }
}

// ---- the client

struct Flow {
    int fd = -1;
    char kind = 'E';
    bool open = false;
    Sequence sequence;
    uint64_t number = 0; // of the echo message that is out
    std::string answer;  // what has come of it
    bool waiting = false;
    uint64_t next_ms = 0, heard_ms = 0;
    uint64_t silence_ms = 0;
    uint64_t acknowledged = 0; // bulk up
};

struct Totals {
    uint64_t broken = 0, wrong = 0, messages = 0;
    std::string first_error;
};

class Client {
public:
    Client(const char* host, const char* port, size_t count, uint64_t interval, size_t bulk)
        : interval_(interval), flows_(count + bulk) {
        address_ = address_of(host, port, size_);
        for (size_t i = 0; i < bulk; ++i) {
            flows_[count + i].kind = i % 2 == 0 ? 'D' : 'U';
        }
    }

    int run() {
        raise_limit();
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
        epoll_ = ::epoll_create1(0);
        const int stop = ::signalfd(-1, &set, SFD_NONBLOCK);
        watch(epoll_, stop, EPOLLIN, true);
        open_all();
        std::printf("open\n");
        std::fflush(stdout);
        for (bool stopped = false; !stopped;) {
            epoll_event events[256];
            const int count = ::epoll_wait(epoll_, events, 256, 10);
            for (int i = 0; i < count; ++i) {
                if (events[i].data.fd == stop) {
                    stopped = true;
                } else {
                    ready(*by_fd_.at(events[i].data.fd), events[i].events);
                }
            }
            tick();
        }
        return report();
    }

private:
    void dial(Flow& flow) {
        flow.fd = ::socket(address_.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
        const int yes = 1;
        ::setsockopt(flow.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        if (::connect(flow.fd, reinterpret_cast<const sockaddr*>(&address_), size_) != 0 &&
            errno != EINPROGRESS) {
            die("connect");
        }
    }

    void greet(Flow& flow) {
        pollfd connected{flow.fd, POLLOUT, 0};
        if (::poll(&connected, 1, 30'000) != 1 ||
            ::send(flow.fd, &flow.kind, 1, MSG_NOSIGNAL) != 1) {
            die("connect");
        }
        by_fd_[flow.fd] = &flow;
        flow.open = true;
        watch(epoll_, flow.fd, flow.kind == 'U' ? EPOLLOUT : EPOLLIN, true);
    }

    // A round trip for so many at once.
    void open_all() {
        constexpr size_t batch = 256;
        const uint64_t start = now_ms();
        for (size_t first = 0; first < flows_.size(); first += batch) {
            const size_t end = std::min(first + batch, flows_.size());
            for (size_t i = first; i < end; ++i) {
                dial(flows_[i]);
            }
            for (size_t i = first; i < end; ++i) {
                greet(flows_[i]);
                flows_[i].next_ms = start + interval_ * i / flows_.size(); // spread evenly
            }
        }
        const uint64_t now = now_ms();
        for (Flow& flow : flows_) {
            flow.next_ms += now - start;
            flow.heard_ms = now;
        }
    }

    void fail(Flow& flow, const char* why, bool wrong) {
        if (totals_.first_error.empty()) {
            totals_.first_error = std::string(why) + ": " + std::strerror(errno);
        }
        (wrong ? totals_.wrong : totals_.broken) += 1;
        ::close(flow.fd);
        flow.open = false;
    }

    static void heard(Flow& flow) {
        const uint64_t now = now_ms();
        flow.silence_ms = std::max(flow.silence_ms, now - flow.heard_ms);
        flow.heard_ms = now;
    }

    void ready(Flow& flow, uint32_t) {
        if (!flow.open) {
            return;
        }
        if (flow.kind == 'U') {
            if (flow.sequence.send_more(flow.fd) < 0) {
                fail(flow, "send", false);
            }
            return;
        }
        uint8_t bytes[chunk];
        const ssize_t size = ::recv(flow.fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (size <= 0) {
            if (size == 0 || errno != EAGAIN) {
                fail(flow, size == 0 ? "closed by the peer" : "recv", false);
            }
            return;
        }
        heard(flow);
        if (flow.kind == 'D') {
            if (!flow.sequence.check(bytes, static_cast<size_t>(size))) {
                fail(flow, "wrong bytes", true);
            }
            return;
        }
        flow.answer.append(reinterpret_cast<char*>(bytes), static_cast<size_t>(size));
        if (flow.answer.size() > message_size ||
            (flow.answer.size() == message_size && flow.answer != message(flow))) {
            fail(flow, "a wrong answer", true);
        } else if (flow.answer.size() == message_size) {
            flow.waiting = false;
            ++totals_.messages;
        }
    }

    std::string message(const Flow& flow) const {
        std::string text(message_size, '.');
        std::snprintf(text.data(),
                      message_size,
                      "%d %llu",
                      flow.fd,
                      static_cast<unsigned long long>(flow.number));
        return text;
    }

    void tick() {
        const uint64_t now = now_ms();
        for (Flow& flow : flows_) {
            if (!flow.open) {
                continue;
            }
            if (flow.kind == 'U') {
                tcp_info info{};
                socklen_t length = sizeof info;
                ::getsockopt(flow.fd, IPPROTO_TCP, TCP_INFO, &info, &length);
                if (info.tcpi_bytes_acked != flow.acknowledged) {
                    flow.acknowledged = info.tcpi_bytes_acked;
                    heard(flow);
                }
                continue;
            }
            if (flow.kind != 'E' || flow.waiting || now < flow.next_ms) {
                continue;
            }
            ++flow.number;
            flow.answer.clear();
            const std::string text = message(flow);
            if (::send(flow.fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT) !=
                static_cast<ssize_t>(text.size())) {
                fail(flow, "send", false);
                continue;
            }
            flow.waiting = true;
            flow.heard_ms = now;
            flow.next_ms = now + interval_;
        }
    }

    int report() {
        uint64_t echo = 0, bulk = 0, down = 0, up = 0;
        const uint64_t now = now_ms();
        for (Flow& flow : flows_) {
            if (flow.open && (flow.waiting || flow.kind != 'E')) {
                flow.silence_ms = std::max(flow.silence_ms, now - flow.heard_ms);
            }
            uint64_t& longest = flow.kind == 'E' ? echo : bulk;
            longest = std::max(longest, flow.silence_ms);
            (flow.kind == 'D' ? down : up) += flow.sequence.offset;
        }
        std::printf("{\"connections\": %zu, \"broken\": %llu, \"wrong\": %llu, \"messages\": %llu, "
                    "\"bytes_down\": %llu, \"bytes_up\": %llu, \"silence_ms\": %llu, "
                    "\"bulk_silence_ms\": %llu, \"error\": \"%s\"}\n",
                    flows_.size(),
                    static_cast<unsigned long long>(totals_.broken),
                    static_cast<unsigned long long>(totals_.wrong),
                    static_cast<unsigned long long>(totals_.messages),
                    static_cast<unsigned long long>(down),
                    static_cast<unsigned long long>(up),
                    static_cast<unsigned long long>(echo),
                    static_cast<unsigned long long>(bulk),
                    totals_.first_error.c_str());
        return totals_.broken + totals_.wrong == 0 ? 0 : 1;
    }

    const uint64_t interval_;
    std::vector<Flow> flows_;
    sockaddr_storage address_{};
    socklen_t size_ = 0;
    int epoll_ = -1;
    std::unordered_map<int, Flow*> by_fd_;
    Totals totals_;
};

// ---- noise

int noise(const char* host, const char* port, size_t count) {
    socklen_t size = 0;
    const sockaddr_storage address = address_of(host, port, size);
    const int fd = ::socket(address.ss_family, SOCK_DGRAM, 0);
    std::mt19937_64 random(1);
    for (size_t i = 0; i < count; ++i) {
        std::vector<uint8_t> bytes(1 + random() % 1400);
        for (uint8_t& byte : bytes) {
            byte = static_cast<uint8_t>(random());
        }
        if (i % 2 == 0 && bytes.size() > 13) {
            bytes[0] = static_cast<uint8_t>(20 + random() % 4);
            bytes[1] = 0xfe;
            bytes[2] = 0xfd;
            bytes[11] = static_cast<uint8_t>((bytes.size() - 13) >> 8);
            bytes[12] = static_cast<uint8_t>(bytes.size() - 13);
        }
        if (::sendto(fd,
                     bytes.data(),
                     bytes.size(),
                     0,
                     reinterpret_cast<const sockaddr*>(&address),
                     size) < 0) {
            die("sendto");
        }
    }
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    const std::string verb = argc > 1 ? argv[1] : "";
    if (verb == "serve" && argc == 3) {
        return serve(argv[2]);
    }
    if (verb == "connect" && argc >= 5 && argc <= 7) {
        return Client(argv[2],
                      argv[3],
                      std::strtoul(argv[4], nullptr, 10),
                      argc > 5 ? std::strtoul(argv[5], nullptr, 10) : 1000,
                      argc > 6 ? std::strtoul(argv[6], nullptr, 10) : 0)
            .run();
    }
    if (verb == "noise" && argc == 5) {
        return noise(argv[2], argv[3], std::strtoul(argv[4], nullptr, 10));
    }
    std::fprintf(stderr,
                 "usage: flows noise ADDRESS PORT COUNT | serve PORT | connect ADDRESS PORT COUNT "
                 "[INTERVAL-MS [BULK]]\n");
    return 2;
}
