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

} // namespace drover
