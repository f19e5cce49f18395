// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/setup.h"

#include "common/error.h"

#include <filesystem>

#include <signal.h>
#include <sys/signalfd.h>

namespace drover::tunnel {

UniqueFd termination_signals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) {
        throw_errno("signals");
    }
    return UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

void make_folder(const std::string& folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
        throw Error(ErrorKind::io, fmt::format("{}: {}", folder, error.message()));
    }
}

} // namespace drover::tunnel
