// SPDX-License-Identifier: GPL-2.0-or-later
// Unix sockets by their paths. Any thread, but listen_unix changes the process's umask for a
// moment.
#pragma once

#include "common/unique_fd.h"

#include <string>

namespace drover {

// Throws Error(usage) for a path that does not fit a socket's address.
void check_socket_path(const std::string& path);
// Close-on-exec, blocking. Throws Error(usage) as above, Error(timeout) where somebody listens and
// takes no connection for 5 s, Error(io) with the errno: ENOENT and ECONNREFUSED mean that nobody
// is there.
UniqueFd connect_unix(const std::string& path);
// Throws Error(usage) as above.
bool somebody_listens(const std::string& path);

// Mode 0600 from its first moment, replacing one that nobody listens on. Close-on-exec. Throws
// Error(state) if another process serves it, Error(usage) as above, Error(io).
UniqueFd listen_unix(const std::string& path);

} // namespace drover
