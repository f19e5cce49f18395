// SPDX-License-Identifier: GPL-2.0-or-later
// The one exception type of the project. Thrown by adapters and the control
// plane; the core (nbd-proxy/core) returns values instead. It ends at four
// borders: the nbdkit callbacks, thread entry, the completion of a spawned
// coroutine, and main.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace drover {

// What went wrong, as far as a caller may act on it. The numbers are the
// JSON-RPC error codes of docs/control.md.
enum class ErrorKind : int {
    usage = -32602,  // bad parameters or configuration: nothing was touched
    state = 1,       // not possible in this role or phase
    io = 2,          // a local disk or file failed
    peer = 3,        // the far side or the link failed
    timeout = 4,
    cancelled = 5,
    refused = 6,  // a safety rule forbids it; trying again will not help
};

class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& what, int sys_errno = 0)
        : std::runtime_error(what), kind_(kind), errno_(sys_errno) {}

    ErrorKind kind() const noexcept { return kind_; }
    // 0 where no errno is behind it.
    int sys_errno() const noexcept { return errno_; }

private:
    ErrorKind kind_;
    int errno_;
};

// "WHAT: No such file or directory", kind io, of the current errno.
[[noreturn]] inline void throw_errno(const std::string& what, int error = errno) {
    throw Error(ErrorKind::io, fmt::format("{}: {}", what, std::strerror(error)), error);
}

}  // namespace drover
