// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/privilege.h"
#include "common/unique_fd.h"

#include <array>
#include <cerrno>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

namespace drover {
namespace {

// Runs the body in a process of its own, as it can't be taken back; its exit status.
template <typename Body>
int in_child(Body&& body) {
    const pid_t pid = ::fork();
    if (pid == 0) {
        ::_exit(body());
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int start_true() {
    const char* const argv[] = {"/bin/true", nullptr};
    ::execv(argv[0], const_cast<char* const*>(argv));
    return errno;
}

} // namespace

TEST_CASE("privilege: a process that is confined starts no program, and goes on") {
    CHECK(in_child(start_true) == 0);
    CHECK(in_child([] {
              forbid_foreign_calls();
              return start_true();
          }) == EPERM);
    CHECK(in_child([] {
              forbid_foreign_calls();
              return ::unshare(CLONE_NEWNS) == 0 ? 0 : errno;
          }) == EPERM);
    CHECK(in_child([] {
              forbid_foreign_calls();
              const pid_t pid = ::fork(); // as nbdkit does to go into the background
              if (pid == 0) {
                  const UniqueFd file(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
                  char byte = 1;
                  ::_exit(::read(file.get(), &byte, 1) == 1 && byte == 0 ? 0 : 1);
              }
              int status = 1;
              return ::waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 1;
          }) == 0);
}

TEST_CASE("privilege: no core file") {
    CHECK(in_child([] {
              keep_memory_private();
              return ::prctl(PR_GET_DUMPABLE);
          }) == 0);
}

TEST_CASE("privilege: our own user may control") {
    std::array<int, 2> ends;
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    const UniqueFd ours(ends[0]), theirs(ends[1]);
    CHECK(may_control(ours.get()));
    CHECK_FALSE(may_control(-1));
}

} // namespace drover
