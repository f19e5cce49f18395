// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/control_server.h"

#include "common/error.h"
#include "common/json_rpc.h"
#include "common/privilege.h"
#include "common/unix_socket.h"

#include <chrono>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr size_t most_connections = 64;
constexpr uint64_t least_interval_ms = 20, default_interval_ms = 500;

} // namespace

// A client. Requests are served one after the other; the status notifications of a subscriber come
// in between.
class ControlServer::Connection {
public:
    Connection(ControlServer& server, UniqueFd fd)
        : server_(server), fd_(std::move(fd)), changed_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
          thread_([this] { run(); }) {}

    ~Connection() {
        ::shutdown(fd_.get(), SHUT_RDWR);
        thread_.join();
    }

    bool ended() const { return ended_; }
    void status_changed() { ::eventfd_write(changed_.get(), 1); }

private:
    void run() noexcept {
        try {
            while (serve()) {
            }
        } catch (const std::exception&) {
            // The peer has gone, or speaks something else.
        }
        ::shutdown(fd_.get(), SHUT_RDWR);
        ended_ = true;
    }

    bool serve() {
        while (const auto line = lines_.next()) {
            answer(*line);
        }
        pollfd fds[] = {{.fd = fd_.get(), .events = POLLIN},
                        {.fd = interval_ms_ != 0 ? changed_.get() : -1, .events = POLLIN}};
        const int ready = ::poll(fds, 2, interval_ms_ != 0 ? static_cast<int>(interval_ms_) : -1);
        if (ready < 0 && errno != EINTR) {
            return false;
        }
        if (interval_ms_ != 0 && (ready == 0 || fds[1].revents != 0)) {
            eventfd_t count = 0;
            ::eventfd_read(changed_.get(), &count);
            send(rpc::serialize(rpc::Request{nullptr, "status", server_.engine_.status()}));
        }
        if (fds[0].revents != 0) {
            char buffer[16384];
            const ssize_t size = ::recv(fd_.get(), buffer, sizeof buffer, 0);
            if (size <= 0) {
                return false;
            }
            lines_.append({buffer, static_cast<size_t>(size)});
        }
        return true;
    }

    void answer(const std::string& line) {
        rpc::Response response;
        bool exits = false;
        try {
            const rpc::Message message = rpc::parse(line);
            const auto* const request = std::get_if<rpc::Request>(&message);
            if (request == nullptr) {
                return; // nothing was asked of it
            }
            response.id = request->id;
            if (request->method == "subscribe") {
                rpc::only_params(request->params, {"interval_ms"});
                interval_ms_ = std::max(least_interval_ms,
                                        rpc::optional_uint_param(request->params, "interval_ms")
                                            .value_or(default_interval_ms));
                response.result = rpc::Json::object();
            } else {
                response.result = server_.engine_.call(request->method, request->params);
                exits = request->method == "shutdown";
            }
        } catch (const Error& error) {
            response.error = error;
        } catch (const std::exception& error) {
            response.error = Error(ErrorKind::io, error.what());
        }
        send(rpc::serialize(response));
        if (exits) {
            server_.exit_();
        }
    }

    void send(const std::string& text) {
        for (size_t sent = 0; sent < text.size();) {
            const ssize_t part =
                ::send(fd_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
            if (part < 0) {
                throw_errno("control socket");
            }
            sent += static_cast<size_t>(part);
        }
    }

    ControlServer& server_;
    UniqueFd fd_, changed_;
    rpc::LineBuffer lines_;
    uint64_t interval_ms_ = 0; // 0: not subscribed
    std::atomic<bool> ended_{false};
    std::thread thread_;
};

ControlServer::ControlServer(Engine& engine, std::string path, std::function<void()> exit)
    : engine_(engine), path_(std::move(path)), exit_(std::move(exit)), listener_(listen_unix(path_)),
      stop_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    thread_ = std::thread([this] { accept_all(); });
    engine_.on_change([this] { // last: it must not outlive us where a thread cannot be had
        const std::lock_guard lock(mutex_);
        for (const auto& connection : connections_) {
            connection->status_changed();
        }
    });
}

ControlServer::~ControlServer() {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
    engine_.on_change(nullptr);
    std::list<std::unique_ptr<Connection>> last;
    {
        const std::lock_guard lock(mutex_);
        last.swap(connections_);
    }
    last.clear();
    ::unlink(path_.c_str());
}

void ControlServer::accept_all() {
    for (;;) {
        pollfd fds[] = {{.fd = listener_.get(), .events = POLLIN},
                        {.fd = stop_.get(), .events = POLLIN}};
        if (::poll(fds, 2, -1) < 0 && errno != EINTR) {
            return;
        }
        if (fds[1].revents != 0) {
            return;
        }
        UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        reap();
        const std::lock_guard lock(mutex_);
        try {
            if (peer && may_control(peer.get()) && connections_.size() < most_connections) {
                connections_.push_back(std::make_unique<Connection>(*this, std::move(peer)));
            }
        } catch (const std::exception&) {
            // No thread for it: the peer sees its connection closed, the disk is served on.
        }
    }
}

void ControlServer::reap() {
    std::list<std::unique_ptr<Connection>> over;
    const std::lock_guard lock(mutex_);
    for (auto it = connections_.begin(); it != connections_.end();) {
        const auto next = std::next(it);
        if ((*it)->ended()) {
            over.splice(over.end(), connections_, it);
        }
        it = next;
    }
}

} // namespace drover
