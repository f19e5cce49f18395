// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/hooks.h"

#include "common/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr size_t most_printed = 65536; // as much as a pipe holds

struct EndSession {
    Child& child;
    bool over = false;
    ~EndSession() {
        if (!over) {
            child.kill_group(SIGTERM);
        }
    }
};

// What is there by now; others may have the other end.
std::string read_rest(int pipe) {
    std::string text(most_printed, '\0');
    size_t have = 0;
    ::fcntl(pipe, F_SETFL, O_NONBLOCK);
    while (have < text.size()) {
        const ssize_t got = ::read(pipe, text.data() + have, text.size() - have);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        have += static_cast<size_t>(got);
    }
    text.resize(have);
    return text;
}

asio::awaitable<std::string> run(std::string name,
                                 std::vector<std::string> command,
                                 HookEnvironment environment,
                                 milliseconds patience,
                                 bool prints) {
    SpawnOptions options;
    options.argv = std::move(command);
    options.env = {{"DROVER_HOOK", name},
                   {"DROVER_VM", environment.vm},
                   {"DROVER_HOST", environment.to},
                   {"DROVER_FROM", environment.from},
                   {"DROVER_TO", environment.to},
                   {"DROVER_MIGRATION", environment.migration}};
    if (prints) {
        options.pipe_stdout = true;
    } else {
        // Our stdout is the report's.
        options.fds = {{STDERR_FILENO, STDOUT_FILENO}};
    }
    options.inherit_stderr = true;
    options.own_session = true;
    Child child = spawn(options);
    EndSession session{child};
    const Deadline deadline = Clock::now() + patience;
    session.over = co_await wait_readable(child.pidfd(), deadline);
    if (!session.over) {
        throw_timeout("hook " + name, patience);
    }
    const auto status = child.wait(milliseconds(0));
    if (!status || !status->success()) {
        throw Error(ErrorKind::refused,
                    fmt::format("hook {}: {}", name, status ? status->text() : "it did not end"));
    }
    co_return prints ? read_rest(child.stdout_pipe.get()) : std::string();
}

} // namespace

asio::awaitable<void> run_hook(std::string name,
                               std::vector<std::string> command,
                               HookEnvironment environment,
                               milliseconds patience) {
    if (command.empty()) {
        co_return;
    }
    co_await run(std::move(name), std::move(command), std::move(environment), patience, false);
}

asio::awaitable<std::string> run_printing_hook(std::string name,
                                               std::vector<std::string> command,
                                               HookEnvironment environment,
                                               milliseconds patience) {
    return run(std::move(name), std::move(command), std::move(environment), patience, true);
}

} // namespace drover
