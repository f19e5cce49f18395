// SPDX-License-Identifier: GPL-2.0-or-later
// The operator's commands at turns of a migration ([hooks] of the VM file).
#pragma once

#include "migrator/async.h"

#include <map>
#include <string>
#include <vector>

namespace drover {

// What every hook finds in its environment.
struct HookEnvironment {
    std::string vm;
    std::string from; // this host
    std::string to;   // the other one, as it was given
    std::string migration;
};

// Runs `command` to its end, in a session of its own, its output on our stderr; nothing to do if it
// is empty. Throws Error(refused), "hook NAME: exit status 2", when it fails, Error(timeout) after
// `patience`. Then, and when it is cancelled, the whole session is ended.
asio::awaitable<void> run_hook(std::string name,
                               std::vector<std::string> command,
                               HookEnvironment environment,
                               milliseconds patience);

// The same of one that is to print something: its stdout, the first 64 KiB.
asio::awaitable<std::string> run_printing_hook(std::string name,
                                               std::vector<std::string> command,
                                               HookEnvironment environment,
                                               milliseconds patience);

} // namespace drover
