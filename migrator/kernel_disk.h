// SPDX-License-Identifier: GPL-2.0-or-later
// A disk that Drover serves, as a block device of this host's kernel (nbd), for hypervisors that
// take nothing else. RUN/VM/DISK.dev is a link to it, so that its name stays what it is whichever
// /dev/nbdN is free. The kernel knows whose a device is by the path of the disk's socket, which it
// keeps with it: a device that somebody else uses is never touched. All of it blocks; any thread.
#pragma once

#include <string>
#include <vector>

namespace drover {

// The disk's device; the kernel connects a free one where it has none, and a new connection takes
// the place of one whose server has died. The link is there when it returns: its path. Throws
// Error(io), Error(refused) where the kernel is too old.
std::string attach_kernel_disk(const std::string& vm, const std::string& disk);
// After the disk's server was started anew: what the guest has asked for meanwhile goes on. Nothing
// to do where the disk has no device.
void reconnect_kernel_disk(const std::string& vm, const std::string& disk);
// Gives the device back, and removes the link. Nothing to do where there is none. Throws
// Error(state) while somebody uses it.
void detach_kernel_disk(const std::string& vm, const std::string& disk);

// Whoever used it has stopped: returns when nothing is under way on the device any more, and all
// that was written is with its server. What the kernel has cached of it is forgotten.
void settle_kernel_disk(const std::string& device);
// The server's content may be another one than when the kernel last read it.
void forget_cached(const std::string& device);

} // namespace drover
