// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/writeback_window.h"

#include <cerrno>

#include <fcntl.h>

namespace drover {
namespace {

constexpr uint64_t window_size = 8 * MiB;

int sync_range(int fd, Extent where, unsigned flags) {
    const int done = sync_file_range(
        fd, static_cast<off_t>(where.offset), static_cast<off_t>(where.length), flags);
    // ESPIPE and EINVAL: not a file with pages to write back.
    return done == 0 || errno == ESPIPE || errno == EINVAL ? 0 : errno;
}

void drop(int fd, Extent where) {
    posix_fadvise(fd,
                  static_cast<off_t>(where.offset),
                  static_cast<off_t>(where.length),
                  POSIX_FADV_DONTNEED);
}

} // namespace

int WritebackWindow::wrote(Extent where) {
    int failure = sync_range(fd_, where, SYNC_FILE_RANGE_WRITE);
    std::unique_lock lock(mutex_);
    ranges_.push_back(where);
    bytes_ += where.length;
    while (bytes_ > window_size) {
        const Extent oldest = ranges_.front();
        ranges_.pop_front();
        bytes_ -= oldest.length;
        lock.unlock();
        const int error = sync_range(fd_,
                                     oldest,
                                     SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                         SYNC_FILE_RANGE_WAIT_AFTER);
        failure = failure != 0 ? failure : error;
        drop(fd_, oldest);
        lock.lock();
    }
    return failure;
}

void WritebackWindow::read(Extent where) {
    drop(fd_, where);
}

} // namespace drover
