// SPDX-License-Identifier: GPL-2.0-or-later
// The priority of the threads that copy, at either side.
#pragma once

#include <cstdint>

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover {

// Where the CPU is short, the requests of guests come first. Of the calling thread; once for each.
// It gets a tenth of their weight, so that it does not starve, and a slice that is longer than
// theirs: then Linux 6.12 and later let a thread of theirs that wakes run at once, rather than at
// the slice's end (PREEMPT_SHORT of EEVDF, sched_setattr(2)). Older ones go by the weight, and so
// does where a filter of system calls keeps threads from more, as some of RestrictRealtime= do.
inline void lower_stream_priority() {
    constexpr int gentler = 10;
    struct { // as in sched_setattr(2); <linux/sched/types.h> and <sched.h> exclude each other
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period; // ns
    } attributes{};
    attributes.size = sizeof attributes;
    attributes.policy = static_cast<uint32_t>(::sched_getscheduler(0)); // batch, if that was chosen
    attributes.nice = ::getpriority(PRIO_PROCESS, 0) + gentler;
    attributes.runtime = 100'000'000; // the longest slice that there is
    if (::syscall(SYS_sched_setattr, 0, &attributes, 0) != 0) {
        ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), attributes.nice);
    }
}

} // namespace drover
