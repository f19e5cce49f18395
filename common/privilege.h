// SPDX-License-Identifier: GPL-2.0-or-later
// Who may speak to a process, and who may look into it.
#pragma once

namespace drover {

// Whether the process that connected to our unix socket is root's or our own user's. Whatever the
// socket's mode and folder let in.
bool may_control(int socket);

// No core files, and no other user's debugger: keys are in this process's memory. Unlike a limit on
// the size of core files it also counts where these are piped to a program, and is not inherited by
// the programs that are started.
void keep_memory_private();

// For this thread and those that it makes from now on: calls that no server of a disk has a use for
// (to start programs, look into other processes, mount, load modules, enter namespaces, ...) fail
// with EPERM, and the kernel's audit log has them. All others, also those to come, are as before.
// Throws Error(io) where the kernel can't.
void forbid_foreign_calls();

} // namespace drover
