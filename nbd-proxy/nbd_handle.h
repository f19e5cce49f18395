// SPDX-License-Identifier: GPL-2.0-or-later
// A connected libnbd handle, for whoever drives it.
#pragma once

#include "nbd-proxy/nbd_client.h"

#include <memory>
#include <string>

#include <libnbd.h>

namespace drover {

// Takes its leave first, where it can: for nbdkit 1.32 the end of a connection without a word is an
// error, which one of its threads handles by closing the socket, or the TLS session, under another
// that is still busy with a reply.
struct NbdClose {
    void operator()(nbd_handle* handle) const {
        if (nbd_aio_is_ready(handle) > 0) {
            nbd_aio_disconnect(handle, 0);
        }
        nbd_close(handle);
    }
};
using NbdHandle = std::unique_ptr<nbd_handle, NbdClose>;

// Connects and negotiates; name is for messages. Throws Error(peer) or Error(timeout).
NbdHandle connect_nbd(const NbdClientOptions& options, const std::string& name);

// The connection is over: nothing more will be answered.
bool nbd_ended(nbd_handle* handle);

// The calling thread's last libnbd error, without the name of the call.
std::string libnbd_error();

} // namespace drover
