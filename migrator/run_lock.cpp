// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/run_lock.h"

#include "common/process.h"
#include "common/secrets.h"

#include <charconv>

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr milliseconds lock_interval{100}; // nothing tells when a lock is free
constexpr milliseconds kill_patience{5000};

} // namespace

bool RunLock::try_lock(const std::string& what) {
    UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) {
        throw_errno(path_);
    }
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) {
            throw_errno(path_);
        }
        return false;
    }
    holder(); // another program's file is not written over
    fd_ = std::move(fd);
    what_ = what;
    write_note("");
    return true;
}

asio::awaitable<bool> RunLock::lock_within(std::string what, milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    while (!try_lock(what)) {
        if (Clock::now() >= deadline) {
            co_return false;
        }
        co_await sleep_for(lock_interval);
    }
    co_return true;
}

void RunLock::note_migration(const std::string& migration) {
    write_note(migration);
}

void RunLock::touch() const {
    if (fd_) {
        ::futimens(fd_.get(), nullptr);
    }
}

std::chrono::seconds RunLock::untouched_for() const {
    struct stat info {};
    if (::stat(path_.c_str(), &info) != 0) {
        return std::chrono::seconds(0);
    }
    return std::chrono::seconds(::time(nullptr) - info.st_mtim.tv_sec);
}

// Not renamed into its place, as the lock is on the file. A reader that comes between finds
// nothing.
void RunLock::write_note(const std::string& migration) {
    const pid_t own = ::getpid();
    const std::string text = lock_note({own, start_of_process(own).value_or(0), what_, migration});
    if (::ftruncate(fd_.get(), 0) != 0 ||
        ::pwrite(fd_.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
        throw_errno(path_);
    }
}

std::optional<LockHolder> RunLock::holder() const {
    const auto text = read_whole_file(path_);
    return text ? parse_lock_note(*text, path_) : std::nullopt;
}

bool RunLock::is_held() const {
    const auto noted = holder();
    return noted && start_of_process(noted->pid) == noted->started;
}

std::optional<uint64_t> start_of_process(pid_t pid) {
    std::optional<std::string> text;
    try {
        text = read_whole_file(fmt::format("/proc/{}/stat", pid));
    } catch (const Error&) {
        return std::nullopt; // it ended while it was read
    }
    // "PID (NAME) STATE ...", and the name may have anything in it. The start is the 22nd field.
    const size_t name_end = text ? text->rfind(')') : std::string::npos;
    if (name_end == std::string::npos) {
        return std::nullopt;
    }
    size_t at = name_end + 1;
    for (int field = 2; field < 21 && at != std::string::npos; ++field) {
        at = text->find(' ', at + 1);
    }
    uint64_t ticks = 0;
    if (at == std::string::npos ||
        std::from_chars(text->data() + at + 1, text->data() + text->size(), ticks).ec !=
            std::errc()) {
        return std::nullopt;
    }
    return ticks;
}

asio::awaitable<bool> end_process(pid_t pid, uint64_t started, milliseconds patience) {
    if (pid <= 1 || start_of_process(pid) != started) {
        co_return true;
    }
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!process || start_of_process(pid) != started) {
        co_return true;
    }
    ::syscall(SYS_pidfd_send_signal, process.get(), SIGTERM, nullptr, 0);
    const Deadline polite = Clock::now() + patience;
    bool over = co_await wait_readable(process.get(), polite);
    if (!over) {
        ::syscall(SYS_pidfd_send_signal, process.get(), SIGKILL, nullptr, 0);
        const Deadline last = Clock::now() + kill_patience;
        over = co_await wait_readable(process.get(), last);
    }
    co_return over;
}

} // namespace drover
