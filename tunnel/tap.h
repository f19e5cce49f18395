// SPDX-License-Identifier: GPL-2.0-or-later
// A TAP device, which goes away with its descriptor.
#pragma once

#include "common/unique_fd.h"

#include <string>

namespace drover::tunnel {

struct Tap {
    // Non-blocking: a read or write is an Offload and one frame. TCP packets may be larger
    // than the MTU, in both directions, and checksums not complete.
    UniqueFd fd;
    std::string name;
};

// Named by the kernel, drt0 and so on. Throws Error(io).
Tap open_tap();

} // namespace drover::tunnel
