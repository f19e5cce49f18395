// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/supervisor.h"

#include "common/error.h"
#include "common/privilege.h"
#include "common/unix_socket.h"
#include "tunnel/helper.h"
#include "tunnel/log.h"

#include <chrono>

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace drover::tunnel {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int failed_status = 1, usage_status = 2;
constexpr unsigned most_failures = 20; // in a row: each within lasting of its start
constexpr std::chrono::seconds lasting{10};
constexpr useconds_t first_pause_us = 50'000, last_pause_us = 2'000'000;

volatile sig_atomic_t child_pid = 0, told_to_stop = 0;

void pass_on(int number) {
    told_to_stop = 1;
    if (child_pid > 0) {
        ::kill(static_cast<pid_t>(child_pid), number);
    }
}

// In the child; its status.
int run_child(const DaemonOptions& options) noexcept {
    for (const int number : {SIGTERM, SIGINT}) {
        ::signal(number, SIG_DFL);
    }
    try {
        run_daemon(options);
        return 0;
    } catch (const Error& error) {
        log_line(options.name, error.what());
        return error.kind() == ErrorKind::usage ? usage_status : failed_status;
    } catch (const std::exception& error) {
        log_line(options.name, error.what());
        return failed_status;
    }
}

// Its wait status.
int run_once(const DaemonOptions& options) {
    sigset_t stops, before;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    ::sigprocmask(SIG_BLOCK, &stops, &before); // until child_pid is known
    const pid_t pid = ::fork();
    if (pid < 0) {
        throw_errno("fork");
    }
    if (pid == 0) {
        ::sigprocmask(SIG_SETMASK, &before, nullptr);
        ::_exit(run_child(options));
    }
    child_pid = pid;
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    child_pid = 0;
    return status;
}

} // namespace

void run_supervised(const DaemonOptions& options) {
    keep_memory_private();
    ::prctl(PR_SET_NAME, "tunnel-restart");
    struct sigaction action {};
    action.sa_handler = pass_on;
    for (const int number : {SIGTERM, SIGINT}) {
        ::sigaction(number, &action, nullptr);
    }
    const std::string state = TunnelFiles::of(options.name).state;
    useconds_t pause = first_pause_us;
    for (unsigned failures = 0; failures < most_failures && told_to_stop == 0; ++failures) {
        const auto started = Clock::now();
        const int status = run_once(options);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            return;
        }
        // What has not come to put anything up would fail again.
        if (WIFEXITED(status) && ::access(state.c_str(), F_OK) != 0) {
            throw Error(WEXITSTATUS(status) == usage_status ? ErrorKind::usage : ErrorKind::io,
                        "it could not be started");
        }
        if (Clock::now() - started >= lasting) {
            failures = 0;
            pause = first_pause_us;
        }
        log_line(options.name, "it has failed, and is started again");
        ::usleep(pause);
        pause = std::min(2 * pause, last_pause_us);
    }
    if (told_to_stop == 0) {
        throw Error(ErrorKind::io, "it fails again and again");
    }
}

} // namespace drover::tunnel
