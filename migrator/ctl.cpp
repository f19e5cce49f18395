// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/ctl.h"

#include "migrator/cli.h"
#include "migrator/paths.h"

#include <array>
#include <cstdio>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;
using rpc::Json;

void send_all(int fd, std::string_view text, const std::string& path) {
    while (!text.empty()) {
        const ssize_t sent = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            throw Error(ErrorKind::peer, fmt::format("{}: {}", path, std::strerror(errno)), errno);
        }
        text.remove_prefix(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
    }
}

void wait_readable(int fd,
                   std::optional<ControlClient::Deadline> deadline,
                   const std::string& path) {
    for (;;) {
        int wait_ms = -1;
        if (deadline) {
            const auto left =
                std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now()).count();
            wait_ms = static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
        }
        pollfd entry{fd, POLLIN, 0};
        const int ready = ::poll(&entry, 1, wait_ms);
        if (ready > 0) {
            return;
        }
        if (ready < 0 && errno != EINTR) {
            throw_errno(path);
        }
        if (deadline && Clock::now() >= *deadline) {
            throw Error(ErrorKind::timeout, fmt::format("{}: no answer in time", path));
        }
    }
}

void print(const Json& value, bool indent) {
    const std::string text =
        value.dump(indent ? 2 : -1, ' ', false, Json::error_handler_t::replace);
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
}

ControlClient connect(const std::string& path) {
    try {
        return ControlClient(path);
    } catch (const Error& error) {
        const bool nobody = error.sys_errno() == ENOENT || error.sys_errno() == ECONNREFUSED;
        throw Error(error.kind(),
                    fmt::format("{}{}",
                                error.what(),
                                nobody ? ": is the disk being served? (`drover serve`)" : ""),
                    error.sys_errno());
    }
}

std::string socket_path(const std::string& given) {
    const size_t slash = given.find('/');
    if (slash == std::string::npos || ::access(given.c_str(), F_OK) == 0) {
        return given;
    }
    const std::string vm = given.substr(0, slash), disk = given.substr(slash + 1);
    return valid_name(vm) && valid_name(disk) ? paths().disk_control(vm, disk) : given;
}

} // namespace

ControlClient::ControlClient(const std::string& path) : path_(path), fd_(connect_unix(path)) {}

Json ControlClient::call(const std::string& method,
                         const Json& params,
                         std::optional<std::chrono::milliseconds> timeout) {
    const auto deadline = timeout ? std::optional(Clock::now() + *timeout) : std::nullopt;
    const Json id = ++last_id_;
    send_all(fd_.get(), rpc::serialize(rpc::Request{id, method, params}), path_);
    for (;;) {
        const auto message = next(deadline);
        if (!message) {
            throw Error(
                ErrorKind::peer,
                fmt::format("{}: the connection ended before {} was answered", path_, method));
        }
        const auto* response = std::get_if<rpc::Response>(&*message);
        if (response == nullptr || (response->id != id && !response->id.is_null())) {
            continue;
        }
        if (response->error) {
            throw *response->error;
        }
        return response->result;
    }
}

std::optional<rpc::Message> ControlClient::next(std::optional<Deadline> deadline) {
    std::array<char, 16384> buffer;
    for (;;) {
        if (const auto line = lines_.next()) {
            return rpc::parse(*line);
        }
        wait_readable(fd_.get(), deadline, path_);
        const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
        if (got == 0 || (got < 0 && errno == ECONNRESET)) {
            return std::nullopt;
        }
        if (got < 0 && errno != EINTR) {
            throw_errno(path_);
        }
        lines_.append({buffer.data(), static_cast<size_t>(std::max<ssize_t>(got, 0))});
    }
}

pid_t ControlClient::peer_pid() const {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
        throw_errno(path_);
    }
    return peer.pid;
}

int run_ctl(const std::string& socket, const std::string& method, const std::string& params) {
    const Json parsed = params.empty() ? Json::object() : Json::parse(params, nullptr, false);
    if (!parsed.is_object()) {
        throw Error(ErrorKind::usage,
                    fmt::format("parameters: a JSON object is expected, such as "
                                "'{{\"downtime_ms\": 300}}', not '{}'",
                                params));
    }
    ControlClient client = connect(socket_path(socket));
    print(client.call(method, parsed), ::isatty(STDOUT_FILENO) == 1 && method != "subscribe");
    if (method != "subscribe") {
        return exit_done;
    }
    while (const auto message = client.next()) {
        if (const auto* notification = std::get_if<rpc::Request>(&*message)) {
            print(notification->params, false);
        }
    }
    return exit_done;
}

} // namespace drover
