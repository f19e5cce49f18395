// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/control_socket.h"

#include "common/privilege.h"
#include "common/unix_socket.h"

#include <sys/socket.h>
#include <sys/time.h>

namespace drover::tunnel {
namespace {

constexpr size_t most_connections = 16;

bool send_all(int fd, const std::string& text, int flags) {
    for (size_t sent = 0; sent < text.size();) {
        const ssize_t part =
            ::send(fd, text.data() + sent, text.size() - sent, flags | MSG_NOSIGNAL);
        if (part < 0) {
            return false;
        }
        sent += static_cast<size_t>(part);
    }
    return true;
}

} // namespace

ControlSocket::ControlSocket(const std::string& path, Handler handler)
    : listener_(listen_unix(path)), handler_(std::move(handler)) {}

void ControlSocket::add_polls(std::vector<pollfd>& polls) const {
    polls.push_back({listener_.get(), POLLIN, 0});
    for (const Connection& connection : connections_) {
        polls.push_back({connection.fd.get(), POLLIN, 0});
    }
}

void ControlSocket::accept_one() {
    UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (peer && may_control(peer.get()) && connections_.size() < most_connections) {
        connections_.push_back({std::move(peer), {}});
    }
}

void ControlSocket::readable(int fd) {
    if (fd == listener_.get()) {
        accept_one();
        return;
    }
    for (auto it = connections_.begin(); it != connections_.end(); ++it) {
        if (it->fd.get() == fd) {
            if (!serve(*it)) {
                connections_.erase(it);
            }
            return;
        }
    }
}

bool ControlSocket::serve(Connection& connection) {
    char buffer[16384];
    const ssize_t size = ::recv(connection.fd.get(), buffer, sizeof buffer, 0);
    if (size <= 0) {
        return size < 0 && errno == EAGAIN;
    }
    try {
        connection.lines.append({buffer, static_cast<size_t>(size)});
        while (const auto line = connection.lines.next()) {
            // Who does not read its answers is not waited for.
            if (!send_all(connection.fd.get(), answer(*line), MSG_DONTWAIT)) {
                return false;
            }
        }
    } catch (const Error&) {
        return false; // no lines
    }
    return true;
}

std::string ControlSocket::answer(const std::string& line) {
    rpc::Response response;
    try {
        const rpc::Message message = rpc::parse(line);
        const auto* const request = std::get_if<rpc::Request>(&message);
        if (request == nullptr) {
            return ""; // nothing was asked
        }
        response.id = request->id;
        response.result = handler_(*request);
    } catch (const Error& error) {
        response.error = error;
    } catch (const std::exception& error) {
        response.error = Error(ErrorKind::io, error.what());
    }
    return rpc::serialize(response);
}

rpc::Json ask(const std::string& path, const std::string& method, rpc::Json params) {
    const UniqueFd fd = connect_unix(path);
    const timeval patience{10, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (!send_all(fd.get(), rpc::serialize(rpc::Request{1, method, std::move(params)}), 0)) {
        throw_errno(path);
    }
    rpc::LineBuffer lines;
    for (;;) {
        if (const auto line = lines.next()) {
            const rpc::Message message = rpc::parse(*line);
            const auto* const response = std::get_if<rpc::Response>(&message);
            if (response == nullptr) {
                continue;
            }
            if (response->error) {
                throw *response->error;
            }
            return response->result;
        }
        char buffer[16384];
        const ssize_t size = ::recv(fd.get(), buffer, sizeof buffer, 0);
        if (size == 0) {
            throw Error(ErrorKind::peer, path + ": the tunnel has ended");
        }
        if (size < 0) {
            throw Error(errno == EAGAIN ? ErrorKind::timeout : ErrorKind::io,
                        path + ": the tunnel does not answer",
                        errno);
        }
        lines.append({buffer, static_cast<size_t>(size)});
    }
}

} // namespace drover::tunnel
