// SPDX-License-Identifier: GPL-2.0-or-later
// A tunnel's process that is started again when it is killed or fails, for tunnels that nobody
// watches: it goes on where it was (daemon.h), with the key and the socket that stay here.
#pragma once

#include "tunnel/daemon.h"

namespace drover::tunnel {

// Returns as run_daemon does, of which the first failure is thrown if it came before all was set
// up. Gives up after failures in a row. SIGTERM and SIGINT are passed on.
void run_supervised(const DaemonOptions& options);

} // namespace drover::tunnel
