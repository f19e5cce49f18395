// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/cli.h"
#include "migrator/ctl.h"
#include "migrator/paths.h"
#include "migrator/recover.h"
#include "migrator/serve.h"
#include "migrator/status.h"
#include "migrator/vm_file.h"
#include "nbd-proxy/record_store.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace drover {
namespace {

// Blocks SIGINT and SIGTERM from here on, and takes them from a descriptor. Before the disks are
// started, so that none is missed; the disks start with default signals.
class StopSignals {
public:
    StopSignals() {
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGINT);
        sigaddset(&mask, SIGTERM);
        ::sigprocmask(SIG_BLOCK, &mask, nullptr);
        fd_.reset(::signalfd(-1, &mask, SFD_CLOEXEC));
        if (!fd_) {
            throw_errno("signalfd");
        }
    }
    int fd() const { return fd_.get(); }

private:
    UniqueFd fd_;
};

// Tells systemd, where it started us with Type=notify.
void notify_ready() {
    const char* path = std::getenv("NOTIFY_SOCKET");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path == nullptr || std::strlen(path) >= sizeof address.sun_path) {
        return;
    }
    const size_t length = std::strlen(path);
    std::memcpy(address.sun_path, path, length);
    if (address.sun_path[0] == '@') {
        address.sun_path[0] = '\0';
    }
    const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    constexpr std::string_view ready = "READY=1";
    ::sendto(fd.get(),
             ready.data(),
             ready.size(),
             MSG_NOSIGNAL,
             reinterpret_cast<const sockaddr*>(&address),
             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

void stop_all(const SiteConfig& site,
              const std::string& vm,
              const std::vector<std::string>& disks) {
    std::optional<Error> first;
    for (const std::string& disk : disks) {
        try {
            if (stop_disk(site, vm, disk)) {
                fmt::print("{}/{}: stopped\n", vm, disk);
            } else {
                fmt::print("{}/{}: was not served\n", vm, disk);
            }
        } catch (const Error& error) {
            // The others are stopped all the same.
            fmt::print(stderr, "drover: {}\n", error.what());
            first = error;
        }
    }
    if (first) {
        throw Error(first->kind(), fmt::format("{}: not every disk could be stopped", vm));
    }
}

// A descriptor of the process that serves the disk.
UniqueFd process_of(const ServedDisk& disk) {
    const ControlClient client(disk.control);
    return open_pidfd(client.peer_pid());
}

// Until a signal, or the end of a disk's process.
int stay(const SiteConfig& site,
         const std::string& vm,
         const std::vector<ServedDisk>& disks,
         const StopSignals& signals) {
    std::vector<UniqueFd> processes;
    std::vector<pollfd> wanted{{signals.fd(), POLLIN, 0}};
    std::vector<std::string> names;
    for (const ServedDisk& disk : disks) {
        processes.push_back(process_of(disk));
        wanted.push_back({processes.back().get(), POLLIN, 0});
        names.push_back(disk.name);
    }
    notify_ready();
    size_t running = disks.size();
    while (running > 0) {
        if (::poll(wanted.data(), wanted.size(), -1) < 0 && errno != EINTR) {
            throw_errno("poll");
        }
        if (wanted[0].revents != 0) {
            stop_all(site, vm, names);
            return exit_done;
        }
        for (size_t i = 1; i < wanted.size(); ++i) {
            if (wanted[i].fd < 0 || wanted[i].revents == 0) {
                continue;
            }
            if (!stopped_cleanly(vm, disks[i - 1].name)) {
                fmt::print(stderr,
                           "drover: disk {}/{}: nbdkit has died; its log is {}; start it again "
                           "with `drover serve {}`\n",
                           vm,
                           disks[i - 1].name,
                           paths().disk_log(vm, disks[i - 1].name),
                           vm);
                return exit_failed;
            }
            wanted[i].fd = -1;
            --running;
        }
    }
    return exit_done;
}

constexpr int first_recovery_pause_ms = 5000, longest_recovery_pause_ms = 60000;

// What became of a migration that was interrupted decides whether anybody may use the disks here.
// With signals: waits until that can be found out. The exit status to end with; nullopt: serve.
std::optional<int>
recover_first(const SiteConfig& site, const VmFile& vm, const StopSignals* signals) {
    for (int pause_ms = first_recovery_pause_ms;;
         pause_ms = std::min(2 * pause_ms, longest_recovery_pause_ms)) {
        const auto status = recover_served(site, vm);
        if (status != exit_recover || signals == nullptr) {
            return status;
        }
        pollfd wanted{signals->fd(), POLLIN, 0};
        if (::poll(&wanted, 1, pause_ms) > 0) {
            return status;
        }
    }
}

// What a migration to here has left, which no VM may use.
bool is_replica(const VmFile& vm) {
    const auto record = peek_record(paths().disk_state(vm.name, vm.disks.front().name));
    return record && record->role == Role::replica;
}

// Of a VM that has moved away, for good.
void refuse_moved(const VmFile& vm) {
    for (const DiskSpec& disk : vm.disks) {
        const auto record = peek_record(paths().disk_state(vm.name, disk.name));
        if (record && record->role == Role::fenced && record->stage == Stage::over) {
            throw Error(
                ErrorKind::refused,
                fmt::format("{0} has moved away: disk {1} is fenced here at generation {2} and "
                            "must not be used; `drover status {0}` where the VM is",
                            vm.name,
                            disk.name,
                            record->generation));
        }
    }
}

} // namespace

int run_serve(const SiteConfig& site, const std::string& name_or_path, bool foreground) {
    // First: its images may be gone.
    refuse_moved(load_vm_file(site, name_or_path, HostCheck::may_be_missing));
    const VmFile vm = load_vm_file(site, name_or_path, HostCheck::must_exist);
    std::optional<StopSignals> signals;
    if (foreground) {
        signals.emplace();
    }
    if (is_replica(vm)) {
        if (const auto status = recover_first(site, vm, foreground ? &*signals : nullptr)) {
            return *status;
        }
    }
    const std::vector<ServedDisk> disks = start_disks(site, vm);
    if (const auto status = recover_first(site, vm, foreground ? &*signals : nullptr)) {
        return *status;
    }
    for (const ServedDisk& disk : disks) {
        fmt::print("{}/{}: {} {} (replication on {})\n",
                   vm.name,
                   disk.name,
                   disk.already ? "is already served on" : "served on",
                   disk.socket,
                   disk.port == 0 ? "a port that is not known" : fmt::format("port {}", disk.port));
    }
    std::fflush(stdout);
    return foreground ? stay(site, vm.name, disks, *signals) : exit_done;
}

int run_serve_stop(const SiteConfig& site, const std::string& name_or_path) {
    const KnownVm vm = find_known(site, name_or_path);
    stop_all(site, vm.name, vm.disks);
    return exit_done;
}

} // namespace drover
