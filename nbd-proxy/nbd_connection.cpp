// SPDX-License-Identifier: GPL-2.0-or-later
// A caller's thread issues its command on the handle, which usually sends it there and then; the
// connection's own thread waits for replies and for room to send. libnbd locks the handle inside
// and calls back with it locked, so nothing here holds a lock across a libnbd call.
#include "nbd-proxy/nbd_connection.h"

#include "common/error.h"

#include <algorithm>
#include <string_view>

#include <libnbd.h>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

namespace drover {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr milliseconds goodbye_limit{1000};
constexpr uint64_t block_status_limit = 4 * GiB - 64 * KiB; // 32 bits, whole blocks

// Callbacks may come more or less often than promised when a call fails: tell once.
void tell(NbdCommand& command, int error) noexcept {
    if (!std::exchange(command.told, true)) {
        NbdCompletion& completion = *command.completion;
        --*command.in_flight;
        completion.finished(error); // the command may be gone after this
    }
}

int completed(void* data, int* error) noexcept {
    tell(*static_cast<NbdCommand*>(data), *error);
    return 1; // libnbd may forget the command
}

int found_extents(void* data,
                  const char* context,
                  uint64_t,
                  uint32_t* entries,
                  size_t count,
                  int* error) noexcept {
    if (std::string_view(context) != LIBNBD_CONTEXT_BASE_ALLOCATION) {
        return 0;
    }
    try {
        auto& found = *static_cast<NbdCommand*>(data)->extents;
        for (size_t i = 0; i + 1 < count; i += 2) {
            found.push_back({.length = entries[i],
                             .hole = (entries[i + 1] & LIBNBD_STATE_HOLE) != 0,
                             .zero = (entries[i + 1] & LIBNBD_STATE_ZERO) != 0});
        }
        return 0;
    } catch (const std::bad_alloc&) {
        *error = ENOMEM;
        return -1;
    }
}

} // namespace

void NbdCompletion::expect() {
    const std::lock_guard lock(mutex_);
    ++pending_;
}

void NbdCompletion::finished(int error) {
    const std::lock_guard lock(mutex_);
    error_ = error_ != 0 ? error_ : error;
    if (--pending_ == 0) {
        changed_.notify_all(); // under the lock: the waiter may destroy this right after
    }
}

bool NbdCompletion::wait(milliseconds limit) {
    std::unique_lock lock(mutex_);
    const auto done = [this] { return pending_ == 0; };
    if (limit.count() <= 0) {
        changed_.wait(lock, done);
        return true;
    }
    return changed_.wait_for(lock, limit, done);
}

NbdConnection::NbdConnection(const NbdClientOptions& options,
                             const std::string& name,
                             std::function<void(const std::string&)> lost)
    : handle_(connect_nbd(options, name)), lost_(std::move(lost)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!wake_) {
        throw_errno("eventfd");
    }
    ask_server();
    thread_ = std::thread([this] { run(); });
}

NbdConnection::~NbdConnection() {
    stop_ = true;
    nbd_aio_disconnect(handle_.get(), 0); // fails where the connection has ended
    kick();
    thread_.join();
}

void NbdConnection::ask_server() {
    nbd_handle* const h = handle_.get();
    const auto limit = [h](int which) {
        const int64_t size = nbd_get_block_size(h, which);
        return static_cast<uint32_t>(std::clamp<int64_t>(size, 0, 0xffffffff));
    };
    server_ = {
        .size = static_cast<uint64_t>(std::max<int64_t>(nbd_get_size(h), 0)),
        .read_only = nbd_is_read_only(h) != 0,
        .rotational = nbd_is_rotational(h) > 0,
        .multi_conn = nbd_can_multi_conn(h) > 0,
        .flush = nbd_can_flush(h) > 0,
        .fua = nbd_can_fua(h) > 0,
        .trim = nbd_can_trim(h) > 0,
        .zero = nbd_can_zero(h) > 0,
        .fast_zero = nbd_can_fast_zero(h) > 0,
        .cache = nbd_can_cache(h) > 0,
        .extents = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0,
        .minimum = limit(LIBNBD_SIZE_MINIMUM),
        .preferred = limit(LIBNBD_SIZE_PREFERRED),
        .maximum = limit(LIBNBD_SIZE_MAXIMUM),
    };
}

bool NbdConnection::ended() const { return nbd_ended(handle_.get()); }

int64_t NbdConnection::issue(NbdCommand& command) {
    nbd_handle* const h = handle_.get();
    const nbd_completion_callback done{.callback = completed, .user_data = &command};
    const Extent where = command.where;
    switch (command.verb) {
    case NbdVerb::read:
        return nbd_aio_pread(h, command.to, where.length, where.offset, done, command.flags);
    case NbdVerb::write:
        return nbd_aio_pwrite(h, command.from, where.length, where.offset, done, command.flags);
    case NbdVerb::flush:
        return nbd_aio_flush(h, done, command.flags);
    case NbdVerb::trim:
        return nbd_aio_trim(h, where.length, where.offset, done, command.flags);
    case NbdVerb::zero:
        return nbd_aio_zero(h, where.length, where.offset, done, command.flags);
    case NbdVerb::cache:
        return nbd_aio_cache(h, where.length, where.offset, done, command.flags);
    case NbdVerb::extents:
        break;
    }
    const nbd_extent_callback extent{.callback = found_extents, .user_data = &command};
    const uint64_t length = std::min(where.length, block_status_limit);
    return nbd_aio_block_status(h, length, where.offset, extent, done, command.flags);
}

void NbdConnection::submit(NbdCommand& command) {
    command.in_flight = &in_flight_;
    ++in_flight_;
    command.completion->expect();
    const bool issued = issue(command) >= 0;
    const int error = issued ? 0 : nbd_get_errno();
    const bool over = ended();
    // The thread must look again when the connection ended here, or not all could be sent.
    if (over || (nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_WRITE) != 0) {
        kick();
    }
    if (!issued) {
        tell(command, over || error == 0 ? nbd_connection_lost : error);
    }
}

void NbdConnection::give_up() {
    give_up_ = true;
    kick();
}

void NbdConnection::kick() {
    const eventfd_t one = 1;
    eventfd_write(wake_.get(), one); // fails only when it is awake already
}

void NbdConnection::run() {
    nbd_handle* const h = handle_.get();
    std::string reason = "the server closed the connection";
    Clock::time_point goodbye = Clock::time_point::max();
    while (!ended() && Clock::now() < goodbye) {
        if (stop_ && goodbye == Clock::time_point::max()) {
            goodbye = Clock::now() + goodbye_limit;
        }
        const unsigned direction = nbd_aio_get_direction(h);
        const bool reads = (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
        const bool writes = (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0;
        pollfd fds[] = {
            {.fd = nbd_aio_get_fd(h),
             .events = static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0))},
            {.fd = wake_.get(), .events = POLLIN},
        };
        if (poll(fds, 2, stop_ ? static_cast<int>(goodbye_limit.count()) : -1) < 0) {
            continue; // EINTR
        }
        if (fds[1].revents != 0) {
            eventfd_t count = 0;
            eventfd_read(wake_.get(), &count);
        }
        if (give_up_.exchange(false)) {
            shutdown(fds[0].fd, SHUT_RDWR); // libnbd then fails what is in flight
        }
        // Another thread may have moved the handle on since, and then the event does not fit: that
        // is an error without consequences.
        constexpr short broken = POLLHUP | POLLERR | POLLNVAL;
        const short events = fds[0].revents;
        int result = 0;
        if (reads && (events & (POLLIN | broken)) != 0) {
            result = nbd_aio_notify_read(h);
        } else if (writes && (events & (POLLOUT | broken)) != 0) {
            result = nbd_aio_notify_write(h);
        }
        if (result < 0 && ended()) {
            reason = libnbd_error();
        }
    }
    if (!stop_) {
        lost_(reason);
    }
}

} // namespace drover
