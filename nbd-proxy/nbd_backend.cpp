// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "nbd-proxy/backend.h"
#include "nbd-proxy/reconnecting_client.h"

namespace drover {

std::unique_ptr<Backend> open_nbd_backend(const std::string& uri,
                                          bool read_only,
                                          std::chrono::milliseconds reconnect,
                                          ClientGone gone) {
    const auto connect = [uri, read_only](const std::atomic<bool>& give_up) {
        return std::make_unique<NbdClient>(
            NbdClientOptions{.uri = uri, .read_only = read_only, .give_up = &give_up});
    };
    auto backend = std::make_unique<ReconnectingClient>(connect, reconnect, std::move(gone));
    if (!read_only && backend->read_only()) {
        throw Error(
            ErrorKind::io,
            fmt::format("{} is served read-only: serve it for writing, or ask for read-only", uri),
            EROFS);
    }
    return backend;
}

} // namespace drover
