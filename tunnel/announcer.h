// SPDX-License-Identifier: GPL-2.0-or-later
// Tells a segment again and again where a VM is that has moved within it.
#pragma once

#include "tunnel/core/address_filter.h"

#include <string>

namespace drover::tunnel {

struct AnnouncerOptions {
    std::string name;   // its control socket is $DROVER_RUN/NAME/announce.ctl
    std::string bridge; // or another interface of the segment
    std::string port;   // the VM's, of that bridge: the bridge is told too; or empty
    Nic nic;
};

// Until its last round, 51 s later, SIGTERM, or `stop` at its control socket. Must be called as
// root, and gives up what it does not need. Throws Error.
void run_announcer(const AnnouncerOptions& options);

// Returns when none of that name runs any more. False: none did. Throws Error(timeout), Error(io).
bool stop_announcer(const std::string& name);

} // namespace drover::tunnel
