// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/serve.h"

#include "common/secrets.h"
#include "migrator/ctl.h"
#include "migrator/kernel_disk.h"
#include "migrator/paths.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <thread>

#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef __aarch64__
#include <sys/auxv.h>
#endif

namespace drover {
namespace {

using Clock = std::chrono::steady_clock;
using rpc::Json;
using std::chrono::milliseconds;

constexpr milliseconds status_timeout{5000};
constexpr int listen_backlog = 64;
// Requests of one connection that nbdkit works on at once: more than the 16 of QEMU, so that
// held writes do not stop its reads.
constexpr const char* nbdkit_threads = "32";

std::string label(const std::string& vm, const std::string& disk) {
    return fmt::format("disk {}/{}", vm, disk);
}

// One start, stop or change of keys of a VM's disks at a time, whoever does it. The lock is on
// the VM's state directory itself: nothing is left behind. (A disk's directory is locked by its
// plugin.)
class VmLock {
public:
    VmLock(const std::string& vm, const std::string& disk) {
        const std::string directory = paths().vm_state(vm);
        make_directories(paths().disk_state(vm, disk), 0700);
        fd_.reset(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!fd_) {
            throw_errno(directory);
        }
        while (::flock(fd_.get(), LOCK_EX) != 0) {
            if (errno != EINTR) {
                throw_errno(directory);
            }
        }
    }

private:
    UniqueFd fd_;
};

UniqueFd listen_unix(const SiteConfig& site, const std::string& path) {
    check_socket_path(path);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        throw_errno(path);
    }
    // Nobody can connect before listen(): no moment with a wider mode.
    if (!site.socket_group.empty()) {
        const group* entry = ::getgrnam(site.socket_group.c_str());
        if (entry == nullptr) {
            throw Error(ErrorKind::usage,
                        fmt::format("{}: 'socket-group': there is no group '{}'",
                                    site.path,
                                    site.socket_group));
        }
        if (::chown(path.c_str(), static_cast<uid_t>(-1), entry->gr_gid) != 0) {
            throw_errno(path);
        }
    }
    if (::chmod(path.c_str(), site.socket_mode) != 0 || ::listen(fd.get(), listen_backlog) != 0) {
        throw_errno(path);
    }
    return fd;
}

struct AddrinfoFree {
    void operator()(addrinfo* info) const { ::freeaddrinfo(info); }
};

// Empty if the port is taken.
UniqueFd try_port(const addrinfo& address, uint16_t port) {
    UniqueFd fd(::socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, 0));
    if (!fd) {
        throw_errno("socket");
    }
    const bool stream = address.ai_socktype == SOCK_STREAM;
    const int on = 1, off = 0;
    if (stream) { // of datagrams it would let two have the port
        ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    sockaddr_storage bound{};
    std::memcpy(&bound, address.ai_addr, address.ai_addrlen);
    if (address.ai_family == AF_INET6) {
        ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        reinterpret_cast<sockaddr_in6&>(bound).sin6_port = htons(port);
    } else {
        reinterpret_cast<sockaddr_in&>(bound).sin_port = htons(port);
    }
    if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&bound), address.ai_addrlen) == 0 &&
        (!stream || ::listen(fd.get(), listen_backlog) == 0)) {
        return fd;
    }
    if (errno != EADDRINUSE) {
        throw_errno("listen");
    }
    return {};
}

Listener listen_on_free_port(const SiteConfig& site, int type) {
    addrinfo hints{};
    hints.ai_socktype = type;
    hints.ai_flags = AI_NUMERICHOST | AI_PASSIVE;
    // "*": IPv6 that takes IPv4 as well, or IPv4 alone where the kernel has no IPv6.
    const bool any = site.listen == "*";
    const bool has_ipv6 = ::access("/proc/net/if_inet6", F_OK) == 0;
    const std::string address = any ? (has_ipv6 ? "::" : "0.0.0.0") : site.listen;
    addrinfo* found = nullptr;
    if (const int error = ::getaddrinfo(address.c_str(), "0", &hints, &found); error != 0) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: 'listen': {}: {}", site.path, address, ::gai_strerror(error)));
    }
    const std::unique_ptr<addrinfo, AddrinfoFree> list(found);
    for (unsigned port = site.ports.first; port <= site.ports.last; ++port) {
        try {
            Listener listener{try_port(*list, static_cast<uint16_t>(port)),
                              static_cast<uint16_t>(port)};
            if (listener.fd) {
                return listener;
            }
        } catch (const Error& error) {
            throw Error(error.kind(),
                        fmt::format("{} port {} ('listen' and 'ports' of {}): {}",
                                    address,
                                    port,
                                    site.path,
                                    std::strerror(error.sys_errno())),
                        error.sys_errno());
        }
    }
    throw Error(ErrorKind::io,
                fmt::format("all ports from {} to {} are taken: widen 'ports' of {}",
                            site.ports.first,
                            site.ports.last,
                            site.path),
                EADDRINUSE);
}

bool cpu_has_aes() {
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
    return (::getauxval(AT_HWCAP) & (1UL << 3)) != 0; // HWCAP_AES
#else
    return false;
#endif
}

// GnuTLS prefers ChaCha20, which is several times slower than AES where the CPU has
// instructions for it, and nbdkit has no option for it. A policy of the host's own is left
// alone.
std::map<std::string, std::string> tls_environment() {
    if (!cpu_has_aes() || ::getenv("GNUTLS_SYSTEM_PRIORITY_FILE") != nullptr ||
        ::access("/etc/gnutls/config", F_OK) == 0) {
        return {};
    }
    const std::string path = paths().run + "/.gnutls.conf"; // no VM has this name
    write_file_atomically(path, "[overrides]\ntls-disabled-cipher = CHACHA20-POLY1305\n", 0644);
    return {{"GNUTLS_SYSTEM_PRIORITY_FILE", path}};
}

void create_psk_file(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!fd || ::fchmod(fd.get(), 0600) != 0) {
        throw_errno(path);
    }
}

void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
        throw_errno(path);
    }
}

void warn_of(const Error& error) {
    fmt::print(stderr, "drover: warning: {}\n", error.what());
}

// A note that is not ours, or damaged, stays.
void remove_sockets(const std::string& vm, const std::string& disk) {
    remove_file(paths().disk_socket(vm, disk));
    remove_file(paths().disk_control(vm, disk));
    try {
        if (read_disk_note(vm, disk)) {
            remove_file(paths().disk_record(vm, disk));
        }
    } catch (const Error& error) {
        warn_of(error);
    }
}

std::vector<std::string> nbdkit_command(const std::string& vm, const ServeDisk& disk) {
    std::vector<std::string> argv{paths().nbdkit, "-f", "-t", nbdkit_threads, "--tls=on"};
    argv.push_back("--tls-psk=" + paths().disk_psk(vm, disk.name));
    argv.push_back(paths().plugin);
    argv.push_back(disk.store.uri.empty() ? "file=" + disk.store.file : "uri=" + disk.store.uri);
    argv.push_back("control=" + paths().disk_control(vm, disk.name));
    argv.push_back("state=" + paths().disk_state(vm, disk.name));
    argv.push_back(disk.role == ServeRole::source ? "role=source" : "role=destination");
    argv.push_back("confine=yes"); // no filter is there that may have to start a program
    if (disk.size != 0) {
        argv.push_back(fmt::format("size={}", disk.size));
    }
    if (disk.block_size != 0) {
        argv.push_back(fmt::format("block-size={}", disk.block_size));
    }
    return argv;
}

// The last lines of a log from `start` on, where this run's begin.
std::string log_end(const std::string& path, uint64_t start) {
    constexpr size_t kept = 2000;
    std::string text;
    try {
        text = read_file(path);
    } catch (const Error&) {
        return "";
    }
    text.erase(0, std::min<uint64_t>(start, text.size()));
    while (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    if (text.size() > kept) {
        text.erase(0, text.find('\n', text.size() - kept) + 1);
    }
    return text;
}

uint64_t file_size(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
}

void read_exactly(int fd, char* data, size_t size, const std::string& path) {
    const timeval limit{5, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    while (size > 0) {
        const ssize_t got = ::recv(fd, data, size, 0);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            throw Error(ErrorKind::io, fmt::format("{}: it accepts, but does not speak NBD", path));
        }
        data += std::max<ssize_t>(got, 0);
        size -= static_cast<size_t>(std::max<ssize_t>(got, 0));
    }
}

// The NBD greeting is there; then a polite end, so that nbdkit's log shows no error.
void check_nbd_greeting(const std::string& path) {
    const UniqueFd fd = connect_unix(path);
    std::array<char, 18> greeting; // NBDMAGIC, IHAVEOPT, flags
    read_exactly(fd.get(), greeting.data(), greeting.size(), path);
    if (std::string_view(greeting.data(), 16) != "NBDMAGICIHAVEOPT") {
        throw Error(ErrorKind::io, fmt::format("{}: it accepts, but does not speak NBD", path));
    }
    constexpr std::string_view abort_option("\0\0\0\3IHAVEOPT\0\0\0\2\0\0\0\0", 20);
    ::send(fd.get(), abort_option.data(), abort_option.size(), MSG_NOSIGNAL);
    std::array<char, 20> reply;
    ::recv(fd.get(), reply.data(), reply.size(), MSG_WAITALL);
}

// Whether anybody answers there; what it says.
std::optional<Json> ask_status(const std::string& control) {
    try {
        ControlClient client(control);
        return client.call("status", Json::object(), status_timeout);
    } catch (const Error& error) {
        const bool gone = error.sys_errno() == ENOENT || error.sys_errno() == ECONNREFUSED ||
                          error.kind() == ErrorKind::peer;
        if (!gone) {
            throw;
        }
        return std::nullopt;
    }
}

void wait_until_served(const SiteConfig& site,
                       const std::string& vm,
                       const ServeDisk& disk,
                       Child& child,
                       uint64_t log_start) {
    const std::string log = paths().disk_log(vm, disk.name);
    const auto deadline = Clock::now() + site.timeouts.start;
    milliseconds pause{5};
    while (!ask_status(paths().disk_control(vm, disk.name))) {
        if (child.wait(pause)) {
            const std::string said = log_end(log, log_start);
            throw Error(ErrorKind::io,
                        fmt::format("{}: nbdkit ended at its start: {}",
                                    label(vm, disk.name),
                                    said.empty() ? "it said nothing" : said));
        }
        if (Clock::now() >= deadline) {
            throw Error(ErrorKind::timeout,
                        fmt::format("{}: nbdkit runs, but does not answer within {} s "
                                    "(timeouts.start of {}); its log is {}",
                                    label(vm, disk.name),
                                    site.timeouts.start.count(),
                                    site.path,
                                    log));
        }
        pause = std::min(pause * 2, milliseconds(100));
    }
    check_nbd_greeting(paths().disk_socket(vm, disk.name));
}

// The kernel closes what a process held that has been killed in any order: its control socket
// may be gone for a moment while its port is not.
Listener listen_for_peers(const SiteConfig& site, uint16_t port) {
    constexpr milliseconds patience{3000}, pause{20};
    for (const auto deadline = Clock::now() + patience; port != 0 && Clock::now() < deadline;
         std::this_thread::sleep_for(pause)) {
        try {
            return listen_tcp(site.listen, port);
        } catch (const Error& error) {
            if (error.sys_errno() != EADDRINUSE) {
                throw;
            }
        }
    }
    return listen_tcp(site);
}

// Under the lock.
ServedDisk start_new(const SiteConfig& site, const std::string& vm, const ServeDisk& disk) {
    const std::string log = paths().disk_log(vm, disk.name);
    const uint64_t log_start = file_size(log);
    const UniqueFd socket = listen_unix(site, paths().disk_socket(vm, disk.name));
    const Listener tcp = listen_for_peers(site, disk.port);
    SpawnOptions options;
    options.argv = nbdkit_command(vm, disk);
    options.env = tls_environment();
    options.fds = {{socket.get(), 3}, {tcp.fd.get(), 4}};
    options.listen_fds = 2;
    options.log_file = log;
    options.detached = true;
    Child child = spawn(options);
    try {
        write_file_atomically(
            paths().disk_record(vm, disk.name), disk_note({child.pid(), tcp.port}), 0644);
        wait_until_served(site, vm, disk, child, log_start);
    } catch (...) {
        child.signal(SIGTERM);
        child.wait(milliseconds(5000));
        throw;
    }
    return {disk.name,
            paths().disk_socket(vm, disk.name),
            paths().disk_control(vm, disk.name),
            tcp.port,
            child.pid(),
            false};
}

} // namespace

Listener listen_tcp(const SiteConfig& site) {
    return listen_on_free_port(site, SOCK_STREAM);
}

Listener listen_udp(const SiteConfig& site) {
    return listen_on_free_port(site, SOCK_DGRAM);
}

Listener listen_tcp(const std::string& address, uint16_t port) {
    SiteConfig site;
    site.path = paths().conf;
    site.listen = address;
    site.ports = {port, port};
    return listen_tcp(site);
}

ServedDisk start_disk(const SiteConfig& site, const std::string& vm, const ServeDisk& disk) {
    const VmLock lock(vm, disk.name);
    if (const auto served = find_served(vm, disk.name)) {
        return *served;
    }
    read_disk_note(vm, disk.name); // one that can't be read is not replaced
    make_directories(paths().vm_run(vm), 0755);
    remove_sockets(vm, disk.name); // of a process that has died
    if (disk.role == ServeRole::destination && !disk.store.file.empty()) {
        make_directories(std::filesystem::path(disk.store.file).parent_path(), 0755);
    }
    create_psk_file(paths().disk_psk(vm, disk.name));
    ServedDisk served;
    try {
        served = start_new(site, vm, disk);
    } catch (...) {
        // If nbdkit runs on (it answers too late), this makes it one that nobody finds; the next
        // start is refused by the lock that it holds on its image.
        remove_sockets(vm, disk.name);
        ::rmdir(paths().vm_run(vm).c_str());
        throw;
    }
    try {
        reconnect_kernel_disk(vm, disk.name);
    } catch (const Error& error) {
        warn_of(error);
    }
    return served;
}

std::vector<ServedDisk> start_disks(const SiteConfig& site, const VmFile& vm) {
    std::vector<ServedDisk> started;
    try {
        for (const DiskSpec& disk : vm.disks) {
            started.push_back(start_disk(site, vm.name, ServeDisk{disk.name, disk.store}));
            if (vm.hypervisor == "xen") {
                attach_kernel_disk(vm.name, disk.name);
            }
        }
    } catch (...) {
        for (const ServedDisk& disk : started) {
            if (!disk.already) {
                try {
                    stop_disk(site, vm.name, disk.name);
                } catch (const Error& error) {
                    fmt::print(stderr, "drover: {}\n", error.what());
                }
            }
        }
        throw;
    }
    return started;
}

std::optional<ServedDisk> find_served(const std::string& vm, const std::string& disk) {
    const std::string control = paths().disk_control(vm, disk);
    const auto status = ask_status(control);
    if (!status) {
        return std::nullopt;
    }
    ServedDisk served{
        disk, paths().disk_socket(vm, disk), control, 0, status->value("pid", 0), true};
    try {
        if (const auto note = read_disk_note(vm, disk); note && note->pid == served.pid) {
            served.port = note->port;
        }
    } catch (const Error& error) {
        warn_of(error);
    }
    return served;
}

std::optional<DiskNote> read_disk_note(const std::string& vm, const std::string& disk) {
    const std::string path = paths().disk_record(vm, disk);
    const auto bytes = read_whole_file(path);
    return bytes ? std::optional(parse_disk_note(*bytes, path)) : std::nullopt;
}

bool stop_disk(const SiteConfig& site, const std::string& vm, const std::string& disk) {
    const VmLock lock(vm, disk);
    detach_kernel_disk(vm, disk);
    std::optional<ControlClient> client;
    try {
        client.emplace(paths().disk_control(vm, disk));
    } catch (const Error& error) {
        if (error.sys_errno() != ENOENT && error.sys_errno() != ECONNREFUSED) {
            throw;
        }
        remove_sockets(vm, disk);
        return false;
    }
    // While the connection stands the pid is the listener's: no other process can have it yet.
    const UniqueFd process = open_pidfd(client->peer_pid());
    const auto deadline = Clock::now() + site.timeouts.stop;
    try {
        client->call("shutdown", Json::object(), site.timeouts.stop);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::peer) {
            throw Error(error.kind(), fmt::format("{}: {}", label(vm, disk), error.what()));
        }
        // It closed before it answered: whether it ends is seen below.
    }
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    if (!wait_for_end(process.get(), std::max(left, milliseconds(0)))) {
        throw Error(ErrorKind::timeout,
                    fmt::format("{}: nbdkit, process {}, has not ended within {} s (timeouts.stop "
                                "of {}); it is left running, as it may hold data; its log is {}",
                                label(vm, disk),
                                client->peer_pid(),
                                site.timeouts.stop.count(),
                                site.path,
                                paths().disk_log(vm, disk)));
    }
    remove_sockets(vm, disk);
    ::rmdir(paths().vm_run(vm).c_str()); // with the last disk; it may hold other things
    return true;
}

bool stopped_cleanly(const std::string& vm, const std::string& disk) {
    const VmLock lock(vm, disk);
    return ::access(paths().disk_control(vm, disk).c_str(), F_OK) != 0 ||
           ask_status(paths().disk_control(vm, disk)).has_value(); // and was started again
}

void add_psk_key(const std::string& vm,
                 const std::string& disk,
                 const std::string& user,
                 const std::string& hex_key) {
    const VmLock lock(vm, disk);
    add_psk(paths().disk_psk(vm, disk), user, hex_key);
}

void remove_psk_key(const std::string& vm, const std::string& disk, const std::string& user) {
    try {
        const VmLock lock(vm, disk);
        remove_psk(paths().disk_psk(vm, disk), user);
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover: the key of {} is not removed: {}\n", user, error.what());
    }
}

void remove_verify_keys(const std::string& vm, const std::string& disk) {
    const VmLock lock(vm, disk);
    remove_psks(paths().disk_psk(vm, disk), verify_user_prefix);
}

} // namespace drover
