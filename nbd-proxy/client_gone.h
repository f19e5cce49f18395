// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "common/error.h"

#include <functional>

namespace drover {

// Whether the client has gone whose request the calling thread does. Asked when a request has
// waited: what a client that was killed had under way must not be done beside, or after, what the
// next one writes. Empty: never. Thread-safe.
using ClientGone = std::function<bool()>;

// Ends such a request. Throws Error(cancelled, ESHUTDOWN), to nobody.
inline void end_if_gone(const ClientGone& gone) {
    if (gone && gone()) {
        throw Error(
            ErrorKind::cancelled, "not done: it waited, and its client has gone", ESHUTDOWN);
    }
}

} // namespace drover
