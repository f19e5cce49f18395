// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/unix_socket.h"

#include "common/error.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

namespace drover {
namespace {

constexpr timeval accept_patience{5, 0};

sockaddr_un address_of(const std::string& path) {
    check_socket_path(path);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());
    return address;
}

void set_send_timeout(int fd, timeval limit) {
    ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

} // namespace

void check_socket_path(const std::string& path) {
    constexpr size_t longest = sizeof(sockaddr_un::sun_path) - 1;
    if (path.size() > longest) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: too long for a socket, whose path has at most {} bytes: "
                                "set DROVER_RUN to a shorter path",
                                path,
                                longest));
    }
}

UniqueFd connect_unix(const std::string& path) {
    const sockaddr_un address = address_of(path);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Else it would wait for ever once a process that hangs has as many in its queue as fit.
    set_send_timeout(fd.get(), accept_patience);
    if (!fd ||
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        if (errno == EAGAIN) {
            throw Error(ErrorKind::timeout, path + ": it takes no connection", errno);
        }
        throw_errno(path);
    }
    set_send_timeout(fd.get(), {});
    return fd;
}

bool somebody_listens(const std::string& path) {
    const sockaddr_un address = address_of(path);
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

UniqueFd listen_unix(const std::string& path) {
    const sockaddr_un address = address_of(path);
    UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (somebody_listens(path)) {
        throw Error(ErrorKind::state,
                    fmt::format("{}: another process serves this control socket", path));
    }
    ::unlink(path.c_str());
    // From its first moment nobody else may connect.
    const mode_t before = ::umask(0177);
    const int bound =
        ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    ::umask(before);
    if (bound < 0 || ::listen(listener.get(), 16) < 0) {
        throw_errno(path);
    }
    return listener;
}

} // namespace drover
