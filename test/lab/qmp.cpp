// SPDX-License-Identifier: GPL-2.0-or-later
// A QMP command by hand, for the lab's own monitor of a guest.
#include "client.h"

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace lab {
namespace {

using nlohmann::json;

// The next message that is an answer, not an event.
json read_answer(int fd, std::string& pending) {
    pollfd polled{fd, POLLIN, 0};
    for (;;) {
        for (size_t end; (end = pending.find('\n')) != std::string::npos;) {
            json message = json::parse(pending.substr(0, end));
            pending.erase(0, end + 1);
            if (!message.contains("event")) {
                return message;
            }
        }
        std::array<char, 65536> buffer;
        if (::poll(&polled, 1, 10'000) != 1) {
            fail("QMP: no answer within 10 s; another client may hold the monitor");
        }
        const ssize_t size = ::recv(fd, buffer.data(), buffer.size(), 0);
        if (size <= 0) {
            fail("QMP: the connection was closed");
        }
        pending.append(buffer.data(), static_cast<size_t>(size));
    }
}

} // namespace

int qmp(const std::string& path, const std::string& command, const std::string& parameters) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        fail(path + ": the path is too long for a socket");
    }
    path.copy(address.sun_path, path.size());
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) {
        fail_errno(path);
    }
    const json start = {{"execute", "qmp_capabilities"}};
    const json execute = {{"execute", command}, {"arguments", json::parse(parameters)}};
    std::string pending;
    json answer = read_answer(fd, pending); // the greeting
    for (const json& request : {start, execute}) {
        const std::string line = request.dump() + "\n";
        if (::send(fd, line.data(), line.size(), MSG_NOSIGNAL) < 0) {
            fail_errno(path);
        }
        answer = read_answer(fd, pending);
        if (!answer.contains("return")) {
            fail(command + ": " + answer.dump());
        }
    }
    ::close(fd);
    std::printf("%s\n", answer["return"].dump().c_str());
    return 0;
}

} // namespace lab
