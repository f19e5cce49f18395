// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/nbd_handle.h"

#include "common/error.h"

#include <algorithm>
#include <string_view>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace drover {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr milliseconds give_up_tick{100};

void set_option(int fd, int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof value); // a tuning: no reason to fail
}

// libnbd has no time-outs of its own: a dead peer is found by TCP.
void watch_tcp(int fd, milliseconds timeout) {
    int family = 0;
    socklen_t length = sizeof family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) < 0 ||
        (family != AF_INET && family != AF_INET6) || timeout.count() <= 0) {
        return;
    }
    const auto probe_s = static_cast<int>(std::clamp<int64_t>(timeout.count() / 4000, 1, 60));
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(timeout.count()));
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, probe_s);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, probe_s);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

} // namespace

std::string libnbd_error() {
    const char* const text = nbd_get_error();
    std::string_view message = text != nullptr ? text : "connection closed";
    const size_t colon = message.find(": ");
    if (message.starts_with("nbd_") && colon != std::string_view::npos) {
        message.remove_prefix(colon + 2);
    }
    return std::string(message);
}

bool nbd_ended(nbd_handle* handle) {
    return nbd_aio_is_dead(handle) != 0 || nbd_aio_is_closed(handle) != 0;
}

NbdHandle connect_nbd(const NbdClientOptions& options, const std::string& name) {
    NbdHandle handle(nbd_create());
    nbd_handle* const h = handle.get();
    bool good = h != nullptr;
    if (good) {
        nbd_set_uri_allow_local_file(h, true); // tls-psk-file=
        nbd_set_pread_initialize(h, false);
        // A disk need not end at a multiple of its blocks, and then the end is not aligned either.
        nbd_set_strict_mode(h,
                            nbd_get_strict_mode(h) & ~static_cast<uint32_t>(LIBNBD_STRICT_ALIGN));
        if (options.block_status) {
            nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION);
        }
    }
    if (!options.psk_user.empty()) {
        good = good && nbd_set_tls(h, LIBNBD_TLS_REQUIRE) == 0 &&
               nbd_set_tls_username(h, options.psk_user.c_str()) == 0 &&
               nbd_set_tls_psk_file(h, options.psk_file.c_str()) == 0;
    }
    good = good && (options.export_name.empty() ||
                    nbd_set_export_name(h, options.export_name.c_str()) == 0);
    if (!options.uri.empty()) {
        good = good && nbd_aio_connect_uri(h, options.uri.c_str()) == 0;
    } else if (!options.socket.empty()) {
        good = good && nbd_aio_connect_unix(h, options.socket.c_str()) == 0;
    } else {
        good = good && nbd_aio_connect_tcp(h, options.host.c_str(), options.port.c_str()) == 0;
    }
    const Clock::time_point deadline = Clock::now() + options.connect_timeout;
    while (good && nbd_aio_is_ready(h) == 0) {
        const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
        if (left.count() <= 0) {
            throw Error(ErrorKind::timeout,
                        fmt::format("cannot connect to {}: no answer within {} ms",
                                    name,
                                    options.connect_timeout.count()),
                        EIO);
        }
        if (options.give_up != nullptr && *options.give_up) {
            throw Error(ErrorKind::cancelled, fmt::format("connecting to {} was given up", name));
        }
        const auto slice = options.give_up != nullptr ? std::min(left, give_up_tick) : left;
        good = !nbd_ended(h) && nbd_poll(h, static_cast<int>(slice.count())) >= 0;
    }
    if (!good) {
        throw Error(
            ErrorKind::peer, fmt::format("cannot connect to {}: {}", name, libnbd_error()), EIO);
    }
    watch_tcp(nbd_aio_get_fd(h), options.tcp_timeout);
    return handle;
}

} // namespace drover
