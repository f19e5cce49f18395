// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/privilege.h"
#include "common/unique_fd.h"
#include "test/unit/folder.h"

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <linux/landlock.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
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

bool kernel_has_landlock() {
    return ::syscall(
               SYS_landlock_create_ruleset, nullptr, size_t{0}, LANDLOCK_CREATE_RULESET_VERSION) >
           0;
}

// 0 or the errno.
int open_error(const std::string& path, int flags) {
    const UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
    return fd ? 0 : errno;
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

TEST_CASE("privilege: an agent sets up a host's networks and programs, not the host") {
    if (in_child([] {
            try {
                forbid_host_calls();
                return 0;
            } catch (const Error& error) {
                return error.sys_errno();
            }
        }) == EACCES) {
        MESSAGE("root is needed");
        return;
    }
    const auto error_of = [](auto&& call) {
        return in_child([&] {
            forbid_host_calls();
            return call() < 0 ? errno : 0;
        });
    };
    CHECK(error_of([] { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }) == EPERM);
    CHECK(error_of([] { return ::swapoff("/none"); }) == EPERM);
    CHECK(error_of([] { return ::syscall(SYS_delete_module, "no_such_module", 0); }) == EPERM);
    CHECK(error_of([] { return ::syscall(SYS_setns, -1, 0); }) == EBADF);
    CHECK(error_of([] { return ::umount("/none"); }) == ENOENT);
    CHECK(error_of([] { return ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 ? 0 : -1; }) == 0);
    CHECK(in_child([] {
              forbid_host_calls();
              return start_true();
          }) == 0);
    CHECK(in_child([] {
              forbid_host_calls();
              forbid_foreign_calls(); // the disks' processes that it starts
              return start_true();
          }) == EPERM);
}

TEST_CASE("privilege: a process whose files are confined") {
    if (!kernel_has_landlock()) {
        MESSAGE("no Landlock here");
        return;
    }
    const Folder folder;
    for (const char* const name : {"state", "images", "theirs"}) {
        std::filesystem::create_directory(folder.file(name));
    }
    const std::string state = folder.file("state"), images = folder.file("images");
    const std::string image = images + "/vm.img", other = images + "/other.img";
    const std::string key = folder.file("theirs/key");
    for (const std::string& file : {image, other, key}) {
        std::ofstream(file) << "content";
    }
    std::filesystem::create_symlink(key, state + "/link");
    const FileAccess files{
        .read = {"/usr", folder.file("none")}, .write = {state, image}, .names = {state, images}};

    SUBCASE("its own are open to it, and may be renamed") {
        CHECK(in_child([&] {
                  confine_files(files);
                  const std::string aside = image + ".fenced-2", temporary = state + "/record.tmp";
                  int error = open_error(image, O_RDWR | O_TRUNC);
                  error |= ::rename(image.c_str(), aside.c_str());
                  error |= open_error(aside, O_RDWR);
                  error |= open_error(images, O_RDONLY | O_DIRECTORY);
                  error |= open_error(temporary, O_WRONLY | O_CREAT | O_TRUNC);
                  error |= ::rename(temporary.c_str(), (state + "/record").c_str());
                  error |= open_error(state + "/record", O_RDONLY);
                  error |= ::unlink((state + "/record").c_str());
                  error |= open_error("/usr", O_RDONLY | O_DIRECTORY);
                  return error == 0 ? 0 : 1;
              }) == 0);
    }
    SUBCASE("no others are, nor by a link, nor to its threads and forks") {
        const auto refused = [&](const std::string& path, int flags) {
            return in_child([&] {
                confine_files(files);
                int error = 0;
                std::thread([&] { error = open_error(path, flags); }).join();
                return error;
            });
        };
        CHECK(refused(other, O_RDONLY) == EACCES);
        CHECK(refused(other, O_WRONLY) == EACCES);
        CHECK(refused(key, O_RDONLY) == EACCES);
        CHECK(refused(state + "/link", O_RDONLY) == EACCES);
        CHECK(refused(folder.file(""), O_RDONLY | O_DIRECTORY) == EACCES);
        CHECK(refused(folder.file("theirs/new"), O_WRONLY | O_CREAT) == EACCES);
        CHECK(refused(images + "/new", O_WRONLY | O_CREAT) == EACCES);
        CHECK(refused("/usr/new", O_WRONLY | O_CREAT) == EACCES);
    }
    SUBCASE("it starts no program") {
        CHECK(in_child([&] {
                  confine_files(files);
                  return start_true();
              }) == EACCES);
    }
    SUBCASE("what was open stays open") {
        CHECK(in_child([&] {
                  const UniqueFd fd(::open(other.c_str(), O_RDWR | O_CLOEXEC));
                  confine_files(files);
                  return ::write(fd.get(), "x", 1) == 1 && ::ftruncate(fd.get(), 9) == 0 ? 0 : 1;
              }) == 0);
    }
}

TEST_CASE("privilege: an agent and what it starts write in its folders alone") {
    const bool is_root = ::geteuid() == 0;
    if (!kernel_has_landlock() || !is_root) {
        MESSAGE("no Landlock here, or not root");
        return;
    }
    const Folder folder;
    for (const char* const name : {"own", "own/sub", "second", "theirs"}) {
        std::filesystem::create_directory(folder.file(name));
    }
    const std::string own = folder.file("own"), second = folder.file("second");
    const std::string theirs = folder.file("theirs"), key = theirs + "/key";
    for (const std::string& file : {key, own + "/image"}) {
        std::ofstream(file) << "content";
    }
    std::filesystem::create_symlink(key, own + "/link");
    const std::vector<std::string> folders{own, second, folder.file("none")};
    const auto error_of = [&](auto&& call) {
        return in_child([&] {
            confine_writes(folders);
            int error = 0;
            std::thread([&] { error = call() < 0 ? errno : 0; }).join();
            return error;
        });
    };
    const auto opened = [&](const std::string& path, int flags) {
        return error_of([&] {
            errno = open_error(path, flags);
            return errno == 0 ? 0 : -1;
        });
    };
    SUBCASE("there all is allowed") {
        CHECK(opened(own + "/image", O_RDWR | O_TRUNC) == 0);
        CHECK(opened(own + "/sub/new", O_WRONLY | O_CREAT) == 0);
        CHECK(error_of([&] { return ::mkdir((own + "/made").c_str(), 0700); }) == 0);
        CHECK(error_of([&] { return ::rmdir((own + "/made").c_str()); }) == 0);
        CHECK(error_of([&] { return ::mkfifo((own + "/fifo").c_str(), 0600); }) == 0);
        CHECK(error_of([&] { return ::unlink((own + "/fifo").c_str()); }) == 0);
        CHECK(error_of([&] {
                  return ::rename((own + "/sub/new").c_str(), (second + "/new").c_str());
              }) == 0);
    }
    SUBCASE("elsewhere it reads and starts programs, and changes nothing") {
        CHECK(opened(key, O_RDONLY) == 0);
        CHECK(opened("/", O_RDONLY | O_DIRECTORY) == 0);
        CHECK(in_child([&] {
                  confine_writes(folders);
                  return start_true();
              }) == 0);
        CHECK(opened(key, O_WRONLY) == EACCES);
        CHECK(opened(key, O_RDWR | O_APPEND) == EACCES);
        CHECK(opened(own + "/link", O_WRONLY) == EACCES);
        CHECK(opened(theirs + "/new", O_WRONLY | O_CREAT) == EACCES);
        CHECK(opened(folder.file("none"), O_WRONLY | O_CREAT) == EACCES);
        CHECK(error_of([&] { return ::mkdir((theirs + "/made").c_str(), 0700); }) == EACCES);
        CHECK(error_of([&] { return ::unlink(key.c_str()); }) == EACCES);
        CHECK(error_of([&] { return ::rmdir(theirs.c_str()); }) == EACCES);
        CHECK(error_of([&] { return ::symlink("x", (theirs + "/link").c_str()); }) == EACCES);
        CHECK(error_of([&] { return ::rename(key.c_str(), (theirs + "/other").c_str()); }) ==
              EACCES);
        const auto into_own = [&](auto&& move) {
            return error_of([&] { return move(key.c_str(), (own + "/taken").c_str()); });
        };
        // EXDEV where only their being moved is what is not allowed.
        CHECK(into_own(::rename) != 0);
        CHECK(into_own(::link) != 0);
        CHECK(error_of([&] {
                  return ::rename((own + "/image").c_str(), (theirs + "/image").c_str());
              }) != 0);
        CHECK(std::filesystem::exists(own + "/image"));
        CHECK(std::filesystem::file_size(key) == 7);
    }
    SUBCASE("it mounts nothing, and sudo would work") {
        CHECK(error_of([&] { return ::mount("none", own.c_str(), "tmpfs", 0, nullptr); }) == EPERM);
        CHECK(error_of([] { return ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 ? 0 : -1; }) == 0);
    }
    SUBCASE("the disks' processes that it starts are confined further") {
        CHECK(in_child([&] {
                  confine_writes(folders);
                  confine_files({.read = {own}, .write = {own + "/image", key}, .names = {}});
                  return open_error(own + "/image", O_RDWR) == 0 &&
                                 open_error(second + "/new", O_WRONLY | O_CREAT) == EACCES
                             ? open_error(key, O_WRONLY)
                             : 1;
              }) == EACCES);
    }
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
