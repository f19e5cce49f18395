// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/paths.h"

#include "common/error.h"
#include "common/unique_fd.h"

#include <array>
#include <cstdlib>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

std::string from_environment(const char* name, const char* fallback) {
    const char* value = std::getenv(name);
    return value == nullptr || *value == '\0'
               ? std::string(fallback)
               : std::filesystem::absolute(value).lexically_normal().string();
}

void write_whole(int fd, std::string_view text, const std::string& path) {
    while (!text.empty()) {
        const ssize_t written = ::write(fd, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            throw_errno(path);
        }
        text.remove_prefix(static_cast<size_t>(std::max<ssize_t>(written, 0)));
    }
}

// Of this mode, whatever the umask. False if its parent is missing.
bool make_directory(const std::string& path, unsigned mode) {
    if (::mkdir(path.c_str(), mode) != 0) {
        if (errno == EEXIST) {
            return true;
        }
        if (errno == ENOENT) {
            return false;
        }
        throw_errno(path);
    }
    if (::chmod(path.c_str(), mode) != 0) {
        throw_errno(path);
    }
    return true;
}

} // namespace

void sync_directory(const std::string& path) {
    const UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory || ::fsync(directory.get()) != 0) {
        throw_errno(path);
    }
}

std::string Paths::vm_files() const {
    return std::filesystem::path(conf).parent_path() / "vm.d";
}
std::string Paths::vm_run(const std::string& vm) const {
    return run + "/" + vm;
}
std::string Paths::vm_state(const std::string& vm) const {
    return state + "/" + vm;
}
std::string Paths::disk_socket(const std::string& vm, const std::string& disk) const {
    return vm_run(vm) + "/" + disk + ".sock";
}
std::string Paths::disk_device(const std::string& vm, const std::string& disk) const {
    return vm_run(vm) + "/" + disk + ".dev";
}
std::string Paths::disk_control(const std::string& vm, const std::string& disk) const {
    return vm_run(vm) + "/" + disk + ".ctl";
}
std::string Paths::disk_record(const std::string& vm, const std::string& disk) const {
    return vm_run(vm) + "/" + disk + ".json";
}
std::string Paths::disk_state(const std::string& vm, const std::string& disk) const {
    return vm_state(vm) + "/" + disk;
}
std::string Paths::disk_psk(const std::string& vm, const std::string& disk) const {
    return disk_state(vm, disk) + "/psk";
}
std::string Paths::disk_log(const std::string& vm, const std::string& disk) const {
    return disk_state(vm, disk) + "/log";
}
std::string Paths::qmp_socket(const std::string& vm) const {
    return vm_run(vm) + "/qmp.sock";
}
std::string Paths::hypervisor_log(const std::string& vm) const {
    return vm_state(vm) + "/hypervisor.log";
}
std::string Paths::tunnel_name(const std::string& vm, size_t nic) {
    return vm + ".nic" + std::to_string(nic);
}
std::string Paths::tunnel_control(const std::string& name) const {
    return run + "/" + name + "/tunnel.ctl";
}
std::string Paths::announcer_control(const std::string& name) const {
    return run + "/" + name + "/announce.ctl";
}
std::string Paths::tunnel_state(const std::string& name) const {
    return run + "/" + name + "/tunnel.state";
}
std::string Paths::tunnel_log(const std::string& vm) const {
    return vm_state(vm) + "/tunnel.log";
}
std::string Paths::migrate_socket(const std::string& vm) const {
    return vm_run(vm) + "/migrate.sock";
}
std::string Paths::journal(const std::string& vm) const {
    return vm_state(vm) + "/journal";
}
std::string Paths::dns_state(const std::string& vm) const {
    return vm_state(vm) + "/dns.state";
}

std::string Paths::migrate_lock(const std::string& vm) const {
    return vm_state(vm) + "/migrate.lock";
}
std::string Paths::agent_lock(const std::string& vm) const {
    return vm_state(vm) + "/agent.lock";
}
std::string Paths::arrived_vm_file(const std::string& vm) const {
    return vm_state(vm) + "/vm.toml";
}

const Paths& paths() {
    static const Paths from_env = [] {
        Paths found;
        found.run = from_environment("DROVER_RUN", "/run/drover");
        found.state = from_environment("DROVER_STATE", "/var/lib/drover/state");
        found.conf = from_environment("DROVER_CONF", "/etc/drover/drover.toml");
        found.conf_named = std::getenv("DROVER_CONF") != nullptr;
        found.plugin = from_environment("DROVER_PLUGIN", "drover");
        found.xen = from_environment("DROVER_XEN", DROVER_XEN);
        found.nbdkit = "nbdkit";
        found.tunnel = from_environment("DROVER_TUNNEL", "drover-tunnel");
        return found;
    }();
    return from_env;
}

void make_directories(const std::string& path, unsigned mode) {
    if (make_directory(path, mode)) {
        return;
    }
    const std::string parent = std::filesystem::path(path).parent_path();
    if (parent.empty() || parent == path) {
        throw_errno(path, ENOENT);
    }
    make_directories(parent, mode);
    if (!make_directory(path, mode)) {
        throw_errno(path, ENOENT);
    }
}

void write_file_atomically(const std::string& path, const std::string& text, unsigned mode) {
    std::string temporary = path + ".XXXXXX";
    const UniqueFd fd(::mkostemp(temporary.data(), O_CLOEXEC));
    if (!fd) {
        throw_errno(path);
    }
    try {
        if (::fchmod(fd.get(), mode) != 0) {
            throw_errno(temporary);
        }
        write_whole(fd.get(), text, temporary);
        if (::fsync(fd.get()) != 0 || ::rename(temporary.c_str(), path.c_str()) != 0) {
            throw_errno(path);
        }
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    sync_directory(std::filesystem::path(path).parent_path());
}

std::string read_file(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) {
        throw_errno(path);
    }
    std::string text;
    std::array<char, 16384> buffer;
    for (;;) {
        const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
        if (got == 0) {
            return text;
        }
        if (got < 0 && errno != EINTR) {
            throw_errno(path);
        }
        text.append(buffer.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
    }
}

} // namespace drover
