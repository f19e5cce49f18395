// SPDX-License-Identifier: GPL-2.0-or-later
// Child processes: by argv, never through a shell; waited for by pidfd, so that no pid can be
// mistaken for another process's. Nothing here installs a SIGCHLD handler.
#pragma once

#include "common/unique_fd.h"

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <sys/types.h>

namespace drover {

struct ExitStatus {
    bool known = true; // false: not our child (detached), only its end was seen
    int code = 0;
    int signal = 0; // 0: it exited by itself

    bool success() const { return known && code == 0 && signal == 0; }
    // "exit status 2", "killed by signal 9 (Killed)".
    std::string text() const;
};

struct SpawnOptions {
    std::vector<std::string> argv;          // argv[0] without a '/' is looked up in PATH
    std::map<std::string, std::string> env; // on top of our environment
    std::vector<std::string> unset_env;
    // Descriptors of the child: {ours, the child's number}. 0, 1 and 2 are /dev/null where
    // they are not given or piped; any other descriptor is closed.
    std::vector<std::pair<int, int>> fds;
    bool pipe_stdin = false, pipe_stdout = false, pipe_stderr = false;
    bool inherit_stderr = false;
    std::string log_file; // stdout and stderr are appended to it (made 0600)
    std::string cwd;      // empty: ours; detached: "/"
    // setsid and a second fork: the child belongs to init, and nothing of ours can end it by a
    // signal to a group or by closing a terminal.
    bool detached = false;
    // setsid alone: kill_group() reaches what it starts as well.
    bool own_session = false;
    // LISTEN_PID, LISTEN_FDS: the first `listen_fds` descriptors from 3 on (give them in fds).
    int listen_fds = 0;
};

class Child {
public:
    Child() = default;

    pid_t pid() const { return pid_; }
    int pidfd() const { return pidfd_.get(); } // readable when it has ended
    // Our ends of the pipes asked for; take them with std::move.
    UniqueFd stdin_pipe, stdout_pipe, stderr_pipe;

    // Waits until it ends; nullopt if `timeout` passes before. Not again after a status.
    std::optional<ExitStatus> wait(std::optional<std::chrono::milliseconds> timeout = std::nullopt);
    // No error if it has ended already.
    void signal(int number) const;
    void kill_group(int number) const; // own_session only

private:
    friend Child spawn(const SpawnOptions& options);
    pid_t pid_ = 0;
    UniqueFd pidfd_;
    bool detached_ = false;
};

// Throws Error(io) if the program can't be started: also when only the exec failed.
// Safe beside other threads: nothing is allocated between fork and exec.
Child spawn(const SpawnOptions& options);

// For processes that are not our children. The caller holds something that proves that the pid is
// still the process it means (an open connection). Throws Error(io).
UniqueFd open_pidfd(pid_t pid);
// False if `timeout` passes first.
bool wait_for_end(int pidfd, std::chrono::milliseconds timeout);

struct RunResult {
    ExitStatus status;
    bool timed_out = false;
    std::string output; // stdout and stderr, as they came, the last 64 KiB
};

// Runs a command (a hook, a tool) in its own session to its end. After `timeout` the whole session
// is ended. Throws Error(io) if it can't be started.
RunResult run_command(const std::vector<std::string>& argv,
                      const std::map<std::string, std::string>& env,
                      std::chrono::milliseconds timeout);

} // namespace drover
