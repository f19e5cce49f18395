// SPDX-License-Identifier: GPL-2.0-or-later
// The control socket of a tunnel: JSON-RPC (docs/control.md), non-blocking, one thread.
#pragma once

#include "common/json_rpc.h"
#include "common/unique_fd.h"

#include <functional>
#include <list>
#include <vector>

#include <poll.h>

namespace drover::tunnel {

class ControlSocket {
public:
    // The result of a request; throws Error.
    using Handler = std::function<rpc::Json(const rpc::Request&)>;

    // Throws as listen_unix.
    ControlSocket(const std::string& path, Handler handler);

    void add_polls(std::vector<pollfd>& polls) const;
    void readable(int fd);

private:
    struct Connection {
        UniqueFd fd;
        rpc::LineBuffer lines;
    };
    void accept_one();
    // False: it is to be closed.
    bool serve(Connection& connection);
    std::string answer(const std::string& line);

    UniqueFd listener_;
    const Handler handler_;
    std::list<Connection> connections_;
};

// Asks a tunnel. Blocks for up to 10 s. Throws the tunnel's Error, Error(io) if nobody listens
// there, Error(timeout).
rpc::Json ask(const std::string& path, const std::string& method, rpc::Json params);

} // namespace drover::tunnel
