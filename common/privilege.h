// SPDX-License-Identifier: GPL-2.0-or-later
// Who may speak to a process, and who may look into it.
#pragma once

#include <string>
#include <vector>

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

// The same for the few that neither a migration nor a hypervisor or hook has a use for, and
// programs that are started inherit it: to look into other processes, load modules or another
// kernel, set the clock, turn swap or the machine off. Programs of another ABI (32 bits on amd64)
// fail. sudo and the like still work. Throws Error(io), with EACCES where this is not root.
void forbid_host_calls();

// Files, and folders with all that is in them. A path that leads to nothing is passed over.
struct FileAccess {
    std::vector<std::string> read;
    std::vector<std::string> write; // and read
    // Folders: files and sockets in them may be made, renamed there and removed. To read or write
    // one it must also be in a list above.
    std::vector<std::string> names;
};

// For this thread and those that it makes from now on: no other file can be opened, made, renamed
// or removed (EACCES), and no program started. What is open stays open; what is named by its file
// stays accessible when that is renamed. Links count as what they lead to. Attributes, permissions
// and connecting to sockets are not restricted. Throws Error(io), with nothing changed, where the
// kernel can't.
void confine_files(const FileAccess& files);

// For this thread and those that it makes from now on, and programs that are started inherit it:
// files and folders can be made, opened for writing, shortened, renamed and removed nowhere but in
// these folders (EACCES), and nothing can be mounted (EPERM). Reading and starting programs is
// free, as is what is open, and as in confine_files attributes, permissions and sockets. A path
// that leads to nothing is passed over. sudo and the like still work. Throws Error(io), with
// nothing changed, where the kernel can't; with EPERM where this is not root.
void confine_writes(const std::vector<std::string>& folders);

} // namespace drover
