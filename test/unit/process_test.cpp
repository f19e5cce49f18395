// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/process.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

std::string read_all(int fd) {
    std::string text;
    std::array<char, 512> buffer;
    for (ssize_t got; (got = ::read(fd, buffer.data(), buffer.size())) > 0;) {
        text.append(buffer.data(), static_cast<size_t>(got));
    }
    return text;
}

std::string temporary_file() {
    std::string path = (std::filesystem::temp_directory_path() / "drover-process-XXXXXX").string();
    const UniqueFd fd(::mkstemp(path.data()));
    REQUIRE(fd);
    return path;
}

} // namespace

TEST_CASE("a command's output, status and environment come back; no shell is involved") {
    const RunResult echo = run_command({"printf", "%s|", "$HOME", "a b", ";exit 3"}, {}, 10s);
    CHECK(echo.output == "$HOME|a b|;exit 3|");
    CHECK(echo.status.success());

    const RunResult env =
        run_command({"sh", "-c", "echo $DROVER_VM >&2; exit 7"}, {{"DROVER_VM", "vm 1"}}, 10s);
    CHECK(env.output == "vm 1\n");
    CHECK(env.status.code == 7);
    CHECK(env.status.text() == "exit status 7");
    CHECK_FALSE(env.status.success());
}

TEST_CASE("a program that is not there is an error at once, by PATH and by path") {
    CHECK_THROWS_WITH_AS(run_command({"drover-no-such-program"}, {}, 1s),
                         doctest::Contains("not found in PATH"),
                         Error);
    CHECK_THROWS_WITH_AS(
        run_command({"/nonexistent/program"}, {}, 1s), doctest::Contains("No such file"), Error);
    SpawnOptions options;
    options.argv = {"/nonexistent/program"};
    options.detached = true;
    CHECK_THROWS_WITH_AS(spawn(options), doctest::Contains("No such file"), Error);
}

TEST_CASE("at the time-out the command goes, with what it has started") {
    const RunResult result = run_command({"sh", "-c", "sleep 600 & echo $!; sleep 600"}, {}, 300ms);
    CHECK(result.timed_out);
    CHECK(result.status.signal == SIGKILL);
    const pid_t background = std::stoi(result.output);
    // It was killed as well; it goes to init, which reaps it in its own time: gone or a zombie.
    const auto ended = [background] {
        std::ifstream stat("/proc/" + std::to_string(background) + "/stat");
        std::string pid, name, state = "Z";
        stat >> pid >> name >> state;
        return state == "Z";
    };
    for (int i = 0; i < 1000 && !ended(); ++i) {
        std::this_thread::sleep_for(10ms);
    }
    CHECK(ended());
}

TEST_CASE("what a command leaves running does not hold it up") {
    const RunResult result = run_command({"sh", "-c", "sleep 600 & echo $!"}, {}, 60s);
    CHECK_FALSE(result.timed_out);
    const pid_t background = std::stoi(result.output);
    CHECK(::kill(background, SIGKILL) == 0); // it still ran
}

TEST_CASE("of long output the end is kept") {
    const RunResult result = run_command({"sh", "-c", "seq 100000; echo end"}, {}, 60s);
    CHECK(result.output.size() == (64 << 10));
    CHECK(result.output.ends_with("100000\nend\n"));
}

TEST_CASE("stdin and stdout pipes") {
    SpawnOptions options;
    options.argv = {"tr", "a-z", "A-Z"};
    options.pipe_stdin = options.pipe_stdout = true;
    Child child = spawn(options);
    REQUIRE(::write(child.stdin_pipe.get(), "drover", 6) == 6);
    child.stdin_pipe.reset();
    CHECK(read_all(child.stdout_pipe.get()) == "DROVER");
    CHECK(child.wait(10s)->success());
}

TEST_CASE("wait gives up at its time-out, and signal ends the child") {
    SpawnOptions options;
    options.argv = {"sleep", "600"};
    Child child = spawn(options);
    CHECK_FALSE(child.wait(20ms).has_value());
    child.signal(SIGTERM);
    const auto status = child.wait(10s);
    REQUIRE(status.has_value());
    CHECK(status->signal == SIGTERM);
    child.signal(SIGTERM); // has ended: no error
}

TEST_CASE("the child has the descriptors that it was given, and no other") {
    const UniqueFd leak(::open("/dev/zero", O_RDONLY)); // without O_CLOEXEC
    std::array<int, 2> ends;
    REQUIRE(::pipe(ends.data()) == 0);
    const UniqueFd reading(ends[0]);
    UniqueFd writing(ends[1]);
    SpawnOptions options;
    options.argv = {"sh", "-c", "ls /proc/$$/fd; echo fds $LISTEN_FDS, pid $LISTEN_PID is $$"};
    // Crosswise: 3 and 4 of the child are likely the numbers of these two here.
    options.fds = {{writing.get(), 1}, {leak.get(), 4}, {reading.get(), 3}};
    options.listen_fds = 2;
    Child child = spawn(options);
    writing.reset();
    const std::string text = read_all(reading.get());
    CHECK(child.wait(10s)->success());
    std::istringstream lines(text);
    std::string line, fds, announced, word, pid, self;
    while (std::getline(lines, line) && line.find(' ') == std::string::npos) {
        fds += line + " ";
    }
    CHECK(fds == "0 1 2 3 4 ");
    CHECK(line == fmt::format("fds 2, pid {} is {}", child.pid(), child.pid()));
}

TEST_CASE(
    "a detached child lives in its own session, in /, belongs to init, and logs to its file") {
    const std::string log = temporary_file();
    SpawnOptions options;
    options.argv = {
        "sh",
        "-c",
        "pwd; read -r _ _ _ parent _ session _ < /proc/$$/stat; echo $parent $session $$"};
    options.detached = true;
    options.log_file = log;
    Child child = spawn(options);
    const auto status = child.wait(10s);
    REQUIRE(status.has_value());
    CHECK_FALSE(status->known);
    CHECK(::waitpid(-1, nullptr, WNOHANG) == -1); // no zombie is left
    std::ifstream in(log);
    std::string cwd;
    int parent = 0, session = 0, self = 0;
    in >> cwd >> parent >> session >> self;
    CHECK(cwd == "/");
    CHECK(self == child.pid());
    CHECK(parent != ::getpid());
    CHECK(session != ::getsid(0));
    CHECK(session != self); // not a session leader: it can't get a terminal
    std::filesystem::remove(log);
}

TEST_CASE("signals that we block or ignore are as usual in the child") {
    ::signal(SIGPIPE, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &mask, nullptr);
    const RunResult result =
        run_command({"grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"}, {}, 10s);
    ::sigprocmask(SIG_UNBLOCK, &mask, nullptr);
    ::signal(SIGPIPE, SIG_DFL);
    CHECK(result.output == "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}
