// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/privilege.h"

#include "common/error.h"
#include "common/unique_fd.h"

#include <cstddef>
#include <initializer_list>
#include <span>

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover {
namespace {

#if defined(__x86_64__)
constexpr uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t architecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t architecture = 0;
#endif
constexpr uint32_t x32_calls = 0x40000000; // from there on, on x86: the same calls by another ABI

using Calls = std::span<const uint32_t>;

constexpr uint32_t host_calls[] = {
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_perf_event_open,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
};

// Besides these.
constexpr uint32_t foreign_calls[] = {
    SYS_execve,
    SYS_execveat,
    SYS_pidfd_getfd,
    SYS_kcmp,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_open_tree,
    SYS_move_mount,
    SYS_fsopen,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_unshare,
    SYS_setns,
    SYS_bpf,
    SYS_userfaultfd,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_open_by_handle_at,
    SYS_syslog,
#ifdef __x86_64__
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
#endif
};

std::vector<sock_filter> filter_of(std::initializer_list<Calls> lists) {
    const sock_filter refuse = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    std::vector<sock_filter> filter{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0),
        refuse,
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, x32_calls, 0, 1),
        refuse,
    };
    for (const Calls calls : lists) {
        for (const uint32_t call : calls) {
            filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1));
            filter.push_back(refuse);
        }
    }
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    return filter;
}

void refuse_calls(std::initializer_list<Calls> lists) {
    if (architecture == 0) {
        throw_errno("a filter for system calls", ENOSYS);
    }
    std::vector<sock_filter> filter = filter_of(lists);
    const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
    if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &program) != 0) {
        throw_errno("a filter for system calls");
    }
}

// Whoever is not root may install a filter or ruleset only then.
void forbid_new_privileges() {
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        throw_errno("PR_SET_NO_NEW_PRIVS");
    }
}

constexpr uint64_t may_truncate = 1 << 14; // LANDLOCK_ACCESS_FS_TRUNCATE, newer than Debian 12
constexpr uint64_t for_reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
constexpr uint64_t for_writing = for_reading | LANDLOCK_ACCESS_FS_WRITE_FILE | may_truncate;
constexpr uint64_t for_names = LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
                               LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE;
constexpr uint64_t of_files =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | may_truncate;

// All that changes files or folders.
constexpr uint64_t any_change =
    LANDLOCK_ACCESS_FS_WRITE_FILE | may_truncate | LANDLOCK_ACCESS_FS_REMOVE_DIR |
    LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR |
    LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
    LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM | LANDLOCK_ACCESS_FS_REFER;

// All that a kernel with this version of Landlock can restrict of files, but the use of devices.
uint64_t restricted_by(long version) {
    constexpr uint64_t first = LANDLOCK_ACCESS_FS_REFER - 1;
    return version == 1   ? first
           : version == 2 ? first | LANDLOCK_ACCESS_FS_REFER
                          : first | LANDLOCK_ACCESS_FS_REFER | may_truncate;
}

// Of Landlock: what it restricts is refused wherever it is not allowed.
class Ruleset {
public:
    // Restricts what is wanted, as far as this kernel can.
    explicit Ruleset(uint64_t wanted) {
        const long version = ::syscall(
            SYS_landlock_create_ruleset, nullptr, size_t{0}, LANDLOCK_CREATE_RULESET_VERSION);
        if (version < 0) {
            throw_errno("Landlock");
        }
        restricted_.handled_access_fs = wanted & restricted_by(version);
        fd_.reset(static_cast<int>(
            ::syscall(SYS_landlock_create_ruleset, &restricted_, sizeof restricted_, 0)));
        if (!fd_) {
            throw_errno("Landlock");
        }
    }

    void allow(const std::vector<std::string>& paths, uint64_t access) {
        for (const std::string& path : paths) {
            allow(path, access & restricted_.handled_access_fs);
        }
    }

    void apply() {
        if (::syscall(SYS_landlock_restrict_self, fd_.get(), 0) != 0) {
            throw_errno("Landlock");
        }
    }

private:
    void allow(const std::string& path, uint64_t access) {
        const UniqueFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC));
        struct stat status {};
        if (!fd || ::fstat(fd.get(), &status) != 0) {
            if (errno == ENOENT || errno == ENOTDIR || errno == EACCES) {
                return;
            }
            throw_errno(path);
        }
        landlock_path_beneath_attr rule{};
        rule.allowed_access = S_ISDIR(status.st_mode) ? access : access & of_files;
        rule.parent_fd = fd.get();
        if (::syscall(SYS_landlock_add_rule, fd_.get(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) !=
            0) {
            throw_errno(path);
        }
    }

    landlock_ruleset_attr restricted_{};
    UniqueFd fd_;
};

} // namespace

bool may_control(int socket) {
    ucred peer{};
    socklen_t length = sizeof peer;
    return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == ::geteuid());
}

void keep_memory_private() {
    if (::prctl(PR_SET_DUMPABLE, 0) != 0) {
        throw_errno("PR_SET_DUMPABLE");
    }
}

void forbid_foreign_calls() {
    forbid_new_privileges();
    refuse_calls({host_calls, foreign_calls});
}

void forbid_host_calls() {
    refuse_calls({host_calls});
}

void confine_files(const FileAccess& files) {
    Ruleset ruleset(~uint64_t{0});
    ruleset.allow(files.read, for_reading);
    ruleset.allow(files.write, for_writing);
    ruleset.allow(files.names, for_names);
    forbid_new_privileges();
    ruleset.apply();
}

void confine_writes(const std::vector<std::string>& folders) {
    Ruleset ruleset(any_change);
    ruleset.allow(folders, any_change);
    ruleset.apply();
}

} // namespace drover
