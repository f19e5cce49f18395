// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/reader_ring.h"

#include "common/error.h"

#include <sys/eventfd.h>

namespace drover {

ReaderRing::ReaderRing(unsigned entries, std::span<const iovec> registered)
    : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (const int error = io_uring_queue_init(entries, &ring_, 0); error < 0) {
        throw_errno("io_uring_queue_init", -error);
    }
    io_uring_register_eventfd(&ring_, event_.get());
    if (io_uring_register_buffers(
            &ring_, registered.data(), static_cast<unsigned>(registered.size())) == 0) {
        registered_.assign(registered.begin(), registered.end());
    }
}

ReaderRing::~ReaderRing() {
    // The kernel may still write into memory of ours.
    while (under_way_ > 0) {
        io_uring_cqe* cqe = nullptr;
        if (io_uring_wait_cqe(&ring_, &cqe) == 0) {
            io_uring_cqe_seen(&ring_, cqe);
            --under_way_;
        }
    }
    io_uring_queue_exit(&ring_);
}

void ReaderRing::read(int fd, void* memory, uint32_t length, uint64_t offset, uint64_t cookie) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) {
        throw_errno("io_uring: more reads than entries", EBUSY);
    }
    const auto* const at = static_cast<const std::byte*>(memory);
    int index = -1;
    for (size_t i = 0; i < registered_.size() && index < 0; ++i) {
        const auto* const begin = static_cast<const std::byte*>(registered_[i].iov_base);
        index =
            at >= begin && at + length <= begin + registered_[i].iov_len ? static_cast<int>(i) : -1;
    }
    if (index >= 0) {
        io_uring_prep_read_fixed(sqe, fd, memory, length, offset, index);
    } else {
        io_uring_prep_read(sqe, fd, memory, length, offset);
    }
    io_uring_sqe_set_data64(sqe, cookie);
    ++under_way_;
    if (const int submitted = io_uring_submit(&ring_); submitted < 0) {
        --under_way_;
        throw_errno("io_uring_submit", -submitted);
    }
}

void ReaderRing::reap(std::vector<Completion>& done) {
    uint64_t count = 0;
    (void)!::read(event_.get(), &count, sizeof count);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
        done.push_back({io_uring_cqe_get_data64(cqe), cqe->res});
        io_uring_cqe_seen(&ring_, cqe);
        --under_way_;
    }
}

} // namespace drover
