// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/test_steps.h"

#include "common/unique_fd.h"

#include <cstdlib>
#include <mutex>
#include <set>

#include <fmt/format.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

const char* folder() {
    static const char* const found = std::getenv("DROVER_TEST_STEPS");
    return found;
}

bool is_first(const std::string& name) {
    static std::mutex mutex;
    static std::set<std::string> seen;
    const std::lock_guard lock(mutex);
    return seen.insert(name).second;
}

} // namespace

bool has_test_steps() {
    return folder() != nullptr;
}

void stop_for_test(const std::string& name) {
    if (!has_test_steps()) {
        return;
    }
    const std::string path = fmt::format("{}/{}", folder(), name);
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || !S_ISFIFO(info.st_mode) || !is_first(name)) {
        return;
    }
    // Found now: whoever hears that the step was reached may rename it, or remove it.
    const UniqueFd found(::open((path + ".go").c_str(), O_PATH | O_CLOEXEC));
    {
        const UniqueFd reached(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
        if (!reached || ::write(reached.get(), name.data(), name.size()) < 0) {
            return;
        }
    }
    const std::string go_path = fmt::format("/proc/self/fd/{}", found.get());
    const UniqueFd go(::open(go_path.c_str(), O_RDONLY | O_CLOEXEC));
}

} // namespace drover
