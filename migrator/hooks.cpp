// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/hooks.h"

#include "common/process.h"

#include <signal.h>
#include <unistd.h>

namespace drover {
namespace {

struct EndSession {
    Child& child;
    bool over = false;
    ~EndSession() {
        if (!over) {
            child.kill_group(SIGTERM);
        }
    }
};

} // namespace

asio::awaitable<void> run_hook(std::string name,
                               std::vector<std::string> command,
                               HookEnvironment environment,
                               milliseconds patience) {
    if (command.empty()) {
        co_return;
    }
    SpawnOptions options;
    options.argv = std::move(command);
    options.env = {{"DROVER_HOOK", name},
                   {"DROVER_VM", environment.vm},
                   {"DROVER_HOST", environment.to},
                   {"DROVER_FROM", environment.from},
                   {"DROVER_TO", environment.to},
                   {"DROVER_MIGRATION", environment.migration}};
    // Our stdout is the report's.
    options.fds = {{STDERR_FILENO, STDOUT_FILENO}};
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
}

} // namespace drover
