// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/unix_socket.h"

#include "common/error.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace drover {
namespace {

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: the path of a socket has at most {} bytes",
                                path,
                                sizeof address.sun_path - 1));
    }
    path.copy(address.sun_path, path.size());
    return address;
}

} // namespace

UniqueFd connect_unix(const std::string& path) {
    const sockaddr_un address = address_of(path);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd ||
        ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        throw_errno(path);
    }
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
