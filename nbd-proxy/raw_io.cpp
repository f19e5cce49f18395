// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/raw_io.h"

#include "common/error.h"

#include <algorithm>
#include <array>

#include <fcntl.h>
#include <sys/uio.h>

namespace drover {
namespace {

constexpr int clears = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;

[[noreturn]] void failed(const char* verb, Extent where, const std::string& name, int error) {
    throw_errno(
        fmt::format("cannot {} {} bytes at {} of {}", verb, where.length, where.offset, name),
        error);
}

} // namespace

void read_fully(int fd, void* data, Extent where, const std::string& name) {
    auto* to = static_cast<std::byte*>(data);
    for (Extent left = where; left.length > 0;) {
        const ssize_t n = pread(fd, to, left.length, static_cast<off_t>(left.offset));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            failed("read", where, name, errno);
        }
        if (n == 0) {
            throw Error(
                ErrorKind::io,
                fmt::format("{} ends at byte {}: it was cut short while in use", name, left.offset),
                EIO);
        }
        to += n;
        left = {left.offset + static_cast<uint64_t>(n), left.length - static_cast<uint64_t>(n)};
    }
}

void write_fully(int fd, const void* data, Extent where, bool durable, const std::string& name) {
    const auto* from = static_cast<const std::byte*>(data);
    for (Extent left = where; left.length > 0;) {
        const iovec piece{const_cast<std::byte*>(from), left.length};
        const auto offset = static_cast<off_t>(left.offset);
        const ssize_t n = durable ? pwritev2(fd, &piece, 1, offset, RWF_DSYNC)
                                  : pwrite(fd, from, left.length, offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            failed("write", where, name, n < 0 ? errno : EIO);
        }
        from += n;
        left = {left.offset + static_cast<uint64_t>(n), left.length - static_cast<uint64_t>(n)};
    }
}

void write_zeroes(int fd, Extent where, const std::string& name) {
    // Read-only and page-aligned, so it serves O_DIRECT as well.
    alignas(4096) static const std::array<std::byte, 64 * KiB> zeroes{};
    for (Extent left = where; left.length > 0;) {
        const Extent piece{left.offset, std::min<uint64_t>(left.length, zeroes.size())};
        write_fully(fd, zeroes.data(), piece, false, name);
        left = {piece.end(), left.length - piece.length};
    }
}

bool try_fallocate(int fd, int mode, Extent where, const std::string& name) {
    for (;;) {
        const auto offset = static_cast<off_t>(where.offset);
        if (fallocate(fd, mode, offset, static_cast<off_t>(where.length)) == 0) {
            return true;
        }
        switch (errno) {
        case EINTR:
            continue;
        case EOPNOTSUPP:
        case ENOSYS:
        case ENODEV: // a block device without it on older kernels
            return false;
        default:
            failed((mode & clears) != 0 ? "zero" : "allocate", where, name, errno);
        }
    }
}

} // namespace drover
