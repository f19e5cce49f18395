// SPDX-License-Identifier: GPL-2.0-or-later
// Starting and stopping the nbdkit of a disk, at the source (`drover serve`) and at the
// destination (the agent). Each runs detached, in a session of its own: it outlives
// its starter and the ssh connection. The calls block, for `timeouts.start` and
// `timeouts.stop` at the longest, and exclude each other for a VM, across processes.
#pragma once

#include "common/process.h"
#include "common/unique_fd.h"
#include "migrator/config.h"
#include "migrator/state_files.h"

#include <optional>

namespace drover {

enum class ServeRole { source, destination };

struct ServeDisk {
    std::string name;
    DiskStore store;
    ServeRole role = ServeRole::source;
    uint64_t size = 0;       // bytes, destination: what the image is created with
    uint64_t block_size = 0; // bytes, 0: the plugin's default
    uint16_t port = 0;       // NBD over TLS, for replication; taken, or 0: one that is free
};

struct ServedDisk {
    std::string name;
    std::string socket;  // NBD, for the hypervisor
    std::string control; // JSON-RPC
    uint16_t port = 0;   // NBD over TLS, for replication
    pid_t pid = 0;
    bool already = false; // it was being served: nothing was started
};

// Returns once the control socket answers `status` and the NBD socket accepts. One that is
// served already is left as it is. Sockets of a dead process are replaced.
// Throws Error(io) with the end of nbdkit's log if it dies, Error(timeout),
// Error(io) if no port of the range is free, and Error(refused), with nothing started, where the
// note of an earlier process can't be read: it is not replaced.
ServedDisk start_disk(const SiteConfig& site, const std::string& vm, const ServeDisk& disk);

// All disks of a VM file at the source, each as a block device too where the hypervisor takes
// nothing else; if one can't be started, those that this call started are stopped again.
std::vector<ServedDisk> start_disks(const SiteConfig& site, const VmFile& vm);

// The disk as it is being served now; nullopt if it is not. With a note that can't be used its port
// is 0, and stderr says why.
std::optional<ServedDisk> find_served(const std::string& vm, const std::string& disk);

// What its starter noted of the process that serves the disk, or did; nullopt if nothing. Throws
// Error(refused) for a note that is damaged, foreign or newer.
std::optional<DiskNote> read_disk_note(const std::string& vm, const std::string& disk);

// `shutdown` (hold, flush, clean mark), then waits for the process to end, then removes its
// sockets, and its note unless that can't be read. True if it was being served. Throws
// Error(timeout) if it does not end: the process is never killed, as it may hold answered writes.
// Error(state), with nothing done, while its block device is in use.
bool stop_disk(const SiteConfig& site, const std::string& vm, const std::string& disk);

// After the end of a disk's process: whether stop_disk (here or elsewhere) ended it. Waits for one
// that is under way.
bool stopped_cleanly(const std::string& vm, const std::string& disk);

// Users and keys of a disk's TLS-PSK file (DISK/psk, 0600), which nbdkit reads anew for each
// connection. hex_key: lower-case hexadecimal. Adding replaces a user's key, and throws as add_psk
// does.
void add_psk_key(const std::string& vm,
                 const std::string& disk,
                 const std::string& user,
                 const std::string& hex_key);
// Says so where it can't, and throws nothing: what else there is to put away must not wait for it.
void remove_psk_key(const std::string& vm, const std::string& disk, const std::string& user);
// Keys for hashes alone, of users with this prefix. Throws as add_psk_key.
inline constexpr const char* verify_user_prefix = "verify-";
void remove_verify_keys(const std::string& vm, const std::string& disk);

// A listening TCP socket, or a UDP one, on the first free port of the site's range.
struct Listener {
    UniqueFd fd;
    uint16_t port = 0;
};
Listener listen_tcp(const SiteConfig& site);
Listener listen_udp(const SiteConfig& site);
// On one port of an address ("*": all).
Listener listen_tcp(const std::string& address, uint16_t port);

} // namespace drover
