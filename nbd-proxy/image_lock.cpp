// SPDX-License-Identifier: GPL-2.0-or-later
// QEMU's protocol (its block/file-posix.c): each permission has a number n. Who uses permission n
// holds a shared lock on byte 100+n; who does not let others use it holds one on byte 200+n. All
// locks are shared, so taking them never fails; what others hold is then found by asking whether
// an exclusive lock could be had. Taking before asking means that of two who race at least one
// sees the other.
#include "nbd-proxy/image_lock.h"

#include "common/error.h"

#include <array>
#include <string_view>

#include <fcntl.h>

namespace drover {
namespace {

constexpr off_t used_base = 100, unshared_base = 200;

struct Rule {
    int number;            // QEMU's
    std::string_view verb; // what it allows
    bool used_by_reader, used_by_writer;
    bool unshared; // we let nobody else have it, as readers and as writers
};
constexpr std::array rules{
    Rule{0, "read", true, true, false},
    Rule{1, "write", false, true, true},
    Rule{3, "resize", false, false, true},
};

struct flock byte_lock(short type, off_t byte) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return lock;
}

[[noreturn]] void cannot_lock(const std::string& name) {
    const int error = errno;
    throw Error(ErrorKind::io,
                fmt::format("cannot lock {}: {}; keep the image on a file system with file locks "
                            "(on NFS: with its lock service running)",
                            name,
                            std::strerror(error)),
                error);
}

void take(int fd, off_t byte, const std::string& name) {
    struct flock lock = byte_lock(F_RDLCK, byte);
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        cannot_lock(name);
    }
}

bool held_by_another(int fd, off_t byte, const std::string& name) {
    struct flock lock = byte_lock(F_WRLCK, byte);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) {
        cannot_lock(name);
    }
    return lock.l_type != F_UNLCK;
}

[[noreturn]] void in_use(const std::string& name, const std::string& how) {
    throw Error(ErrorKind::refused,
                fmt::format("{} is in use: {}. Stop that program first (a virtual machine, a "
                            "QEMU tool or another server of this disk; 'fuser -v {}' shows it)",
                            name,
                            how,
                            name),
                EBUSY);
}

} // namespace

void lock_image(int fd, ImageUse use, const std::string& name) {
    const auto used = [use](const Rule& rule) {
        return use == ImageUse::write ? rule.used_by_writer : rule.used_by_reader;
    };
    for (const Rule& rule : rules) {
        if (used(rule)) {
            take(fd, used_base + rule.number, name);
        }
        if (rule.unshared) {
            take(fd, unshared_base + rule.number, name);
        }
    }
    for (const Rule& rule : rules) {
        if (used(rule) && held_by_another(fd, unshared_base + rule.number, name)) {
            in_use(
                name,
                fmt::format("another program has it open and lets nobody else {} it", rule.verb));
        }
        if (rule.unshared && held_by_another(fd, used_base + rule.number, name)) {
            in_use(name, fmt::format("another program has it open to {} it", rule.verb));
        }
    }
}

} // namespace drover
