// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/process.h"

#include "common/error.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t output_kept = 64 << 10;
constexpr std::string_view listen_pid = "LISTEN_PID=";

std::string find_program(const std::string& name) {
    if (name.find('/') != std::string::npos) {
        return name;
    }
    const char* path = ::getenv("PATH");
    std::string_view rest = path != nullptr ? path : "/usr/sbin:/usr/bin:/sbin:/bin";
    while (!rest.empty()) {
        const size_t colon = std::min(rest.find(':'), rest.size());
        const std::string candidate = std::string(rest.substr(0, colon)) + "/" + name;
        if (colon != 0 && ::access(candidate.c_str(), X_OK) == 0) {
            return candidate;
        }
        rest.remove_prefix(std::min(colon + 1, rest.size()));
    }
    throw Error(
        ErrorKind::io, fmt::format("{}: not found in PATH: is it installed?", name), ENOENT);
}

// What the child needs, made before the fork: after it nothing may be allocated.
struct Plan {
    std::string program;
    std::vector<std::string> strings;
    std::vector<char*> argv, env;
    char* listen_pid_digits = nullptr;    // in env: the child writes its own pid there
    std::vector<std::pair<int, int>> fds; // ours, the child's
    std::vector<int> lifted;              // room for the descriptors on their way
    std::vector<bool> wanted;             // by number, up to the highest of the child's
    const char* cwd = nullptr;
    bool detached = false, own_session = false;
};

bool in_list(const std::vector<std::string>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

void plan_environment(const SpawnOptions& options, std::vector<std::string>& env) {
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string_view text = *entry;
        const std::string name(text.substr(0, text.find('=')));
        const bool ours = name == "LISTEN_PID" || name == "LISTEN_FDS" || name == "LISTEN_FDNAMES";
        if (!ours && !in_list(options.unset_env, name) &&
            options.env.find(name) == options.env.end()) {
            env.emplace_back(text);
        }
    }
    for (const auto& [name, value] : options.env) {
        env.push_back(name + "=" + value);
    }
    if (options.listen_fds > 0) {
        env.push_back(fmt::format("LISTEN_FDS={}", options.listen_fds));
        env.push_back(std::string(listen_pid) + std::string(20, '\0'));
    }
}

// Fills argv and env with pointers into plan.strings: the plan must not move afterwards.
void plan_words(const SpawnOptions& options, Plan& plan) {
    plan.strings = options.argv;
    plan_environment(options, plan.strings);
    for (size_t i = 0; i < plan.strings.size(); ++i) {
        char* word = plan.strings[i].data();
        (i < options.argv.size() ? plan.argv : plan.env).push_back(word);
        if (i >= options.argv.size() && plan.strings[i].starts_with(listen_pid)) {
            plan.listen_pid_digits = word + listen_pid.size();
        }
    }
    plan.argv.push_back(nullptr);
    plan.env.push_back(nullptr);
}

// The child's side; async-signal-safe calls only.

bool arrange_fds(Plan& plan, int& channel) {
    const int base = static_cast<int>(plan.wanted.size()) + 1; // above: the channel, then the rest
    for (size_t i = 0; i < plan.fds.size(); ++i) {
        plan.lifted[i] = ::fcntl(plan.fds[i].first, F_DUPFD, base);
        if (plan.lifted[i] < 0) {
            return false;
        }
    }
    const int lifted_channel = ::fcntl(channel, F_DUPFD, base);
    if (lifted_channel < 0) {
        return false;
    }
    channel = lifted_channel;
    for (size_t i = 0; i < plan.fds.size(); ++i) {
        if (::dup2(plan.lifted[i], plan.fds[i].second) < 0) {
            return false;
        }
    }
    if (::dup3(channel, base - 1, O_CLOEXEC) < 0) {
        return false;
    }
    channel = base - 1;
    for (int fd = 0; fd < base - 1; ++fd) {
        if (!plan.wanted[static_cast<size_t>(fd)]) {
            ::close(fd);
        }
    }
    return ::close_range(static_cast<unsigned>(base), ~0U, 0) == 0;
}

void default_signals() {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    for (int number = 1; number < NSIG; ++number) {
        ::sigaction(number, &action, nullptr); // fails for a few, which have no handler
    }
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

void write_digits(char* to, unsigned value) {
    std::array<char, 12> reversed;
    size_t count = 0;
    do {
        reversed[count++] = static_cast<char>('0' + value % 10);
        value /= 10;
    } while (value != 0);
    while (count > 0) {
        *to++ = reversed[--count];
    }
    *to = '\0';
}

// The parent reads an errno; a negative one while it still waits for a pid.
[[noreturn]] void child_failed(int channel, int sign = 1) {
    const int error = sign * errno;
    [[maybe_unused]] const ssize_t written = ::write(channel, &error, sizeof error);
    ::_exit(127);
}

[[noreturn]] void run_child(Plan& plan, int channel) {
    if ((plan.detached || plan.own_session) && ::setsid() < 0) {
        child_failed(channel, plan.detached ? -1 : 1);
    }
    if (plan.detached) {
        const pid_t second = ::fork();
        if (second < 0) {
            child_failed(channel, -1);
        }
        if (second > 0) {
            ::_exit(0);
        }
        // The parent opens a pidfd for this pid while we wait: it can't be anybody else's then.
        const pid_t self = ::getpid();
        char go = 0;
        if (::write(channel, &self, sizeof self) != sizeof self || ::read(channel, &go, 1) != 1) {
            ::_exit(127);
        }
    }
    if (!arrange_fds(plan, channel) || (plan.cwd != nullptr && ::chdir(plan.cwd) != 0)) {
        child_failed(channel);
    }
    if (plan.listen_pid_digits != nullptr) {
        write_digits(plan.listen_pid_digits, static_cast<unsigned>(::getpid()));
    }
    default_signals();
    ::execve(plan.program.c_str(), plan.argv.data(), plan.env.data());
    child_failed(channel);
}

// Blocks every signal for a scope: the child must not run a handler of ours.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        ::pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

private:
    sigset_t before_;
};

ssize_t read_whole(int fd, void* data, size_t size) {
    ssize_t got;
    do {
        got = ::read(fd, data, size);
    } while (got < 0 && errno == EINTR);
    return got;
}

void reap(pid_t pid) {
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
}

struct Pipe {
    UniqueFd read, write;
};

Pipe make_pipe() {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
        throw_errno("pipe");
    }
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

int poll_timeout(std::optional<Clock::time_point> deadline) {
    if (!deadline) {
        return -1;
    }
    const auto left = std::chrono::ceil<milliseconds>(*deadline - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// False at the deadline.
bool wait_readable(int fd, std::optional<Clock::time_point> deadline) {
    for (;;) {
        pollfd entry{fd, POLLIN, 0};
        const int ready = ::poll(&entry, 1, poll_timeout(deadline));
        if (ready > 0) {
            return true;
        }
        if (ready == 0 && deadline && Clock::now() >= *deadline) {
            return false;
        }
        if (ready < 0 && errno != EINTR) {
            throw_errno("poll");
        }
    }
}

} // namespace

UniqueFd open_pidfd(pid_t pid) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!fd) {
        throw_errno(fmt::format("process {}", pid));
    }
    return fd;
}

bool wait_for_end(int pidfd, milliseconds timeout) {
    return wait_readable(pidfd, Clock::now() + timeout);
}

std::string ExitStatus::text() const {
    if (!known) {
        return "ended";
    }
    return signal != 0 ? fmt::format("killed by signal {} ({})", signal, ::strsignal(signal))
                       : fmt::format("exit status {}", code);
}

Child spawn(const SpawnOptions& options) {
    if (options.argv.empty()) {
        throw Error(ErrorKind::usage, "an empty command");
    }
    Child child;
    Plan plan;
    plan.program = find_program(options.argv[0]);
    plan_words(options, plan);
    plan.detached = options.detached;
    plan.own_session = options.own_session;
    plan.cwd = !options.cwd.empty() ? options.cwd.c_str() : options.detached ? "/" : nullptr;

    plan.fds = options.fds;
    const auto give = [&plan](int ours, int target) {
        const bool given = std::any_of(plan.fds.begin(), plan.fds.end(), [target](const auto& fd) {
            return fd.second == target;
        });
        if (!given) {
            plan.fds.emplace_back(ours, target);
        }
    };
    Pipe in, out, err;
    if (options.pipe_stdin) {
        in = make_pipe();
        give(in.read.get(), 0);
    }
    if (options.pipe_stdout) {
        out = make_pipe();
        give(out.write.get(), 1);
    }
    if (options.pipe_stderr) {
        err = make_pipe();
        give(err.write.get(), 2);
    } else if (options.inherit_stderr) {
        give(STDERR_FILENO, 2);
    }
    UniqueFd log;
    if (!options.log_file.empty()) {
        log.reset(
            ::open(options.log_file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
        if (!log) {
            throw_errno(options.log_file);
        }
        give(log.get(), 1);
        give(log.get(), 2);
    }
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!null) {
        throw_errno("/dev/null");
    }
    for (const int standard : {0, 1, 2}) {
        give(null.get(), standard);
    }
    plan.lifted.resize(plan.fds.size());
    for (const auto& [ours, target] : plan.fds) {
        const size_t number = static_cast<size_t>(target);
        plan.wanted.resize(std::max(plan.wanted.size(), number + 1));
        plan.wanted[number] = true;
    }

    std::array<int, 2> ends;
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
        throw_errno("socketpair");
    }
    const UniqueFd channel(ends[0]);
    UniqueFd child_channel(ends[1]);
    pid_t pid;
    {
        const SignalsBlocked blocked;
        pid = ::fork();
        if (pid == 0) {
            run_child(plan, child_channel.get());
        }
    }
    if (pid < 0) {
        throw_errno("fork");
    }
    child_channel.reset();
    child.detached_ = options.detached;
    child.pid_ = pid;
    if (options.detached) {
        reap(pid); // the first child ends at once
        pid_t second = 0;
        if (read_whole(channel.get(), &second, sizeof second) != sizeof second || second <= 0) {
            throw_errno(options.argv[0], second < 0 ? -second : EIO);
        }
        child.pid_ = second;
    }
    child.pidfd_ = open_pidfd(child.pid_);
    if (options.detached && ::send(channel.get(), "", 1, MSG_NOSIGNAL) != 1) {
        throw_errno(options.argv[0]);
    }
    int error = 0;
    if (read_whole(channel.get(), &error, sizeof error) == sizeof error) {
        if (!options.detached) {
            reap(pid);
        }
        throw_errno(options.argv[0], error);
    }
    child.stdin_pipe = std::move(in.write);
    child.stdout_pipe = std::move(out.read);
    child.stderr_pipe = std::move(err.read);
    return child;
}

std::optional<ExitStatus> Child::wait(std::optional<milliseconds> timeout) {
    const auto deadline = timeout ? std::optional(Clock::now() + *timeout) : std::nullopt;
    if (!wait_readable(pidfd_.get(), deadline)) {
        return std::nullopt;
    }
    ExitStatus status;
    siginfo_t info{};
    if (detached_ || ::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0) {
        status.known = false;
        return status;
    }
    (info.si_code == CLD_EXITED ? status.code : status.signal) = info.si_status;
    return status;
}

void Child::signal(int number) const {
    if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0) != 0 && errno != ESRCH) {
        throw_errno(fmt::format("signal to process {}", pid_));
    }
}

void Child::kill_group(int number) const {
    if (::kill(-pid_, number) != 0 && errno != ESRCH) {
        throw_errno(fmt::format("signal to process group {}", pid_));
    }
}

RunResult run_command(const std::vector<std::string>& argv,
                      const std::map<std::string, std::string>& env,
                      milliseconds timeout) {
    Pipe output = make_pipe();
    SpawnOptions options;
    options.argv = argv;
    options.env = env;
    options.fds = {{output.write.get(), 1}, {output.write.get(), 2}};
    options.own_session = true;
    Child child = spawn(options);
    output.write.reset();

    RunResult result;
    const auto keep = [&result](const char* data, size_t size) {
        result.output.append(data, size);
        if (result.output.size() > 2 * output_kept) {
            result.output.erase(0, result.output.size() - output_kept);
        }
    };
    const auto deadline = Clock::now() + timeout;
    std::array<char, 4096> buffer;
    bool open = true;
    for (;;) {
        std::array<pollfd, 2> wanted{
            {{child.pidfd(), POLLIN, 0}, {open ? output.read.get() : -1, POLLIN, 0}}};
        const int ready = ::poll(wanted.data(), wanted.size(), poll_timeout(deadline));
        if (ready < 0 && errno != EINTR) {
            throw_errno("poll");
        }
        if (ready > 0 && wanted[1].revents != 0) {
            const ssize_t got = read_whole(output.read.get(), buffer.data(), buffer.size());
            open = got > 0;
            keep(buffer.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
            continue;
        }
        // Output first: what it wrote before it ended is in the pipe. What it left running may
        // hold the pipe open: that is not waited for.
        if (ready > 0 && wanted[0].revents != 0) {
            break;
        }
        if (Clock::now() >= deadline) {
            result.timed_out = true;
            child.kill_group(SIGKILL);
            break;
        }
    }
    result.status = *child.wait();
    if (result.output.size() > output_kept) {
        result.output.erase(0, result.output.size() - output_kept);
    }
    return result;
}

} // namespace drover
