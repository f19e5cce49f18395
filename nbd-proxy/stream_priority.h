// SPDX-License-Identifier: GPL-2.0-or-later
// The priority of the threads that copy, at either side.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

namespace drover {

// Where the CPU is short, the requests of guests come first. Of the calling thread; once for each.
inline void lower_stream_priority() {
    constexpr int gentler = 10;
    ::setpriority(
        PRIO_PROCESS, static_cast<id_t>(::gettid()), ::getpriority(PRIO_PROCESS, 0) + gentler);
}

} // namespace drover
