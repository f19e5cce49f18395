// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/probe.h"

#include "common/json_rpc.h"
#include "migrator/agent_params.h"
#include "migrator/serve.h"

#include <array>
#include <memory>

#include <asio/posix/stream_descriptor.hpp>

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds datagram_interval{300};
struct AddrinfoFree {
    void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, AddrinfoFree>;

Addresses resolve(const std::string& host, uint16_t port, int type, std::string& error) {
    addrinfo hints{};
    hints.ai_socktype = type;
    // As the disks' links and drover-tunnel look it up.
    hints.ai_flags = AI_NUMERICSERV | (type == SOCK_DGRAM ? AI_ADDRCONFIG : 0);
    addrinfo* found = nullptr;
    if (const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
        code != 0) {
        error = ::gai_strerror(code);
        return nullptr;
    }
    return Addresses(found);
}

bool wait_for(int fd, short events, Deadline deadline) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    pollfd one{fd, events, 0};
    return left.count() > 0 && ::poll(&one, 1, static_cast<int>(left.count()) + 1) == 1;
}

const char* const silence = "nothing comes back";

std::string connect_within(int fd, const addrinfo& to, Deadline deadline) {
    if (::connect(fd, to.ai_addr, to.ai_addrlen) == 0) {
        return "";
    }
    if (errno != EINPROGRESS) {
        return std::strerror(errno);
    }
    if (!wait_for(fd, POLLOUT, deadline)) {
        return silence;
    }
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error == 0 ? "" : std::strerror(error);
}

std::string hear_word(int fd, const std::string& word, Deadline deadline) {
    std::string got;
    while (got.size() < word.size()) {
        if (!wait_for(fd, POLLIN, deadline)) {
            return silence;
        }
        std::array<char, probe_word_digits> piece{};
        const ssize_t bytes = ::recv(fd, piece.data(), piece.size(), MSG_DONTWAIT);
        if (bytes < 0) {
            return std::strerror(errno);
        }
        if (bytes == 0) {
            break;
        }
        got.append(piece.data(), static_cast<size_t>(bytes));
    }
    return got == word ? "" : "something else answers there, and not the agent";
}

UniqueFd open_socket(const addrinfo& to) {
    UniqueFd fd(::socket(to.ai_family, to.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) {
        throw_errno("socket");
    }
    return fd;
}

} // namespace

// What comes at one port is answered at once, or not at all: a word fits into any socket's buffer.
class ProbePort {
public:
    ProbePort(const asio::any_io_executor& executor,
              Listener listener,
              bool stream,
              std::string word)
        : number_(listener.port), stream_(stream), word_(std::move(word)),
          socket_(executor, listener.fd.release()) {
        socket_.non_blocking(true);
        wait();
    }

    uint16_t number() const { return number_; }

private:
    void wait() {
        socket_.async_wait(asio::posix::stream_descriptor::wait_read,
                           [this](asio::error_code error) {
                               if (!error) {
                                   stream_ ? answer_stream() : answer_datagram();
                                   wait();
                               }
                           });
    }

    void answer_stream() {
        const UniqueFd peer(::accept4(socket_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC));
        if (peer) {
            ::send(peer.get(), word_.data(), word_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    }

    void answer_datagram() {
        std::array<char, 2 * probe_word_digits> got{};
        sockaddr_storage from{};
        socklen_t size = sizeof from;
        auto* const address = reinterpret_cast<sockaddr*>(&from);
        const int fd = socket_.native_handle();
        const ssize_t bytes = ::recvfrom(fd, got.data(), got.size(), 0, address, &size);
        if (bytes > 0 && std::string_view(got.data(), static_cast<size_t>(bytes)) == word_) {
            ::sendto(fd, word_.data(), word_.size(), 0, address, size);
        }
    }

    const uint16_t number_;
    const bool stream_;
    const std::string word_;
    asio::posix::stream_descriptor socket_;
};

Probe::Probe(asio::any_io_executor executor, const SiteConfig& site)
    : executor_(std::move(executor)), site_(site) {}

Probe::~Probe() = default;

Json Probe::open(const Json& params) {
    const ProbeParams wanted = probe_params(site_, params);
    ports_.clear();
    Json answer{{"tcp", Json::array()}, {"udp", Json::array()}};
    for (size_t i = 0; i < wanted.tcp + wanted.udp; ++i) {
        const bool stream = i < wanted.tcp;
        Listener listener = stream ? listen_tcp(site_) : listen_udp(site_);
        answer[stream ? "tcp" : "udp"].push_back(listener.port);
        ports_.push_back(
            std::make_unique<ProbePort>(executor_, std::move(listener), stream, wanted.word));
    }
    return answer;
}

std::string
probe_tcp(const std::string& host, uint16_t port, const std::string& word, milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    std::string error;
    const Addresses list = resolve(host, port, SOCK_STREAM, error);
    for (const addrinfo* to = list.get(); to != nullptr; to = to->ai_next) {
        const UniqueFd fd = open_socket(*to);
        error = connect_within(fd.get(), *to, deadline);
        if (error.empty()) {
            return hear_word(fd.get(), word, deadline);
        }
    }
    return error;
}

std::string
probe_udp(const std::string& host, uint16_t port, const std::string& word, milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    std::string error;
    const Addresses list = resolve(host, port, SOCK_DGRAM, error);
    if (!list) {
        return error;
    }
    const UniqueFd fd = open_socket(*list); // of several addresses drover-tunnel dials the first
    if (::connect(fd.get(), list->ai_addr, list->ai_addrlen) != 0) {
        return std::strerror(errno);
    }
    // Datagrams get lost.
    do {
        ::send(fd.get(), word.data(), word.size(), MSG_NOSIGNAL);
        error = hear_word(fd.get(), word, std::min(deadline, Clock::now() + datagram_interval));
    } while (!error.empty() && Clock::now() < deadline);
    return error;
}

} // namespace drover
