// SPDX-License-Identifier: GPL-2.0-or-later
// A TAP device, which goes away with its descriptor.
#pragma once

#include "common/unique_fd.h"

#include <string>

namespace drover::tunnel {

struct Tap {
    UniqueFd fd; // non-blocking: a read or write is one frame
    std::string name;
};

// Named by the kernel, drt0 and so on. Throws Error(io).
Tap open_tap();

} // namespace drover::tunnel
