// SPDX-License-Identifier: GPL-2.0-or-later
// What each process of a tunnel does at its start.
#pragma once

#include "common/unique_fd.h"

#include <string>

namespace drover::tunnel {

// Readable once SIGTERM or SIGINT has come, which end nothing by themselves any more. Throws
// Error(io).
UniqueFd termination_signals();

// With those above it. Throws Error(io).
void make_folder(const std::string& folder);

} // namespace drover::tunnel
