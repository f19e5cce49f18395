// SPDX-License-Identifier: GPL-2.0-or-later
// A tunnel's process: sets up, gives up its rights, and then moves frames until it is told to stop.
#pragma once

#include "tunnel/core/end.h"
#include "tunnel/link.h"

namespace drover::tunnel {

struct DaemonOptions {
    std::string name;
    EndOptions end;
    std::string at; // home: the bridge; away: the VM's port
    LinkOptions link;
    std::string user = "nobody"; // runs as that one, once it is set up
};

// Runs until SIGTERM or SIGINT (which take down this end alone), or until both ends close. Needs
// root. What an earlier process of this tunnel left is gone on with. Throws Error with nothing put
// up that was not there before; or when it can't go on, and then for that.
void run_daemon(DaemonOptions options);

} // namespace drover::tunnel
