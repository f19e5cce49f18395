// SPDX-License-Identifier: GPL-2.0-or-later
// `drover agent --stdio`: the destination's side of a migration (docs/control.md).
#pragma once

#include "migrator/config.h"

namespace drover {

// Serves the coordinator on descriptors 0 and 1 until it is finished, or its input ends; log
// on stderr. Returns the exit status: 0, or 1 when it could not clean up. Nothing is thrown.
// SIGHUP, SIGPIPE are ignored; SIGTERM and SIGINT act as the end of the input.
int run_agent_stdio(const SiteConfig& site);

} // namespace drover
