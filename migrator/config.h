// SPDX-License-Identifier: GPL-2.0-or-later
// What the operator wrote: the site's drover.toml, and the VM files. Both are
// checked strictly when they are read (drover.toml(5), drover-vm(5)); a value
// that is in one of these structs has passed its check.
#pragma once

#include "common/error.h"
#include "common/units.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace drover {

// [a-zA-Z0-9][a-zA-Z0-9._-]{0,63}: names of VMs and disks. They become file names, NBD URIs
// and argv words, so nothing else is let through.
bool valid_name(std::string_view name);
// The same, but for what Drover's own files and sockets beside the disks' are called.
bool valid_disk_name(std::string_view name);
// Six pairs of lower-case hexadecimal digits with colons; not a group address.
bool valid_mac(std::string_view mac);
// One that a VM file may name.
bool known_hypervisor(std::string_view hypervisor);
// A Linux interface name: 1 to 15 of [a-zA-Z0-9._-], not "." or "..".
bool valid_bridge(std::string_view bridge);
// An address of an interface, "10.1.0.10/24" or "2001:db8::10/64".
bool valid_address(std::string_view address);
// An address alone.
bool valid_ip(std::string_view address);

// Where a disk's content is: exactly one of the two is set.
struct DiskStore {
    std::string file; // absolute path of a raw image or a block device
    std::string uri;  // an NBD URI
};

struct DiskSpec {
    std::string name;
    DiskStore store;
};

struct NicSpec {
    std::string mac;    // lower case
    std::string bridge; // empty: the template does not need one
    std::vector<std::string> addresses;
    std::vector<std::string> gateways;    // outside of the addresses' networks
    std::vector<std::string> link_locals; // its own that are not made from its MAC
    std::string home_bridge;              // here, never sent; empty: as `bridge`
};

inline constexpr uint16_t dns_port = 53;

// The names of a VM that moves get its new addresses (migrator/dns_change.h).
struct DnsSpec {
    std::vector<std::string> names; // canonical: in lower case, with a last dot; the first is the
                                    // one of the PTR records
    std::string server;             // an address
    uint16_t port = dns_port;
    std::string key_file; // absolute path
    uint32_t ttl = 60;    // seconds, while it moves
    bool ptr = true;      // the addresses' PTR records too
    // One of the two says the new addresses: by the HOST that it is moved to; or a command (as
    // Hooks) that prints them.
    std::map<std::string, std::vector<std::string>> addresses;
    std::vector<std::string> address_hook;
};

// What becomes of connections to the addresses of a VM that moves.
struct NetworkSpec {
    enum class Mode {
        none,
        tunnel,    // a tunnel keeps them, for each NIC with addresses (drover-tunnel(1))
        stretched, // both sites are one segment, which is told where the VM is
        automatic, // one of the last two
    };
    Mode mode = Mode::none;
    std::string keep = "until-idle", keep_at_least = "2h"; // as drover-tunnel takes them
    std::optional<DnsSpec> dns;
};

// Commands at the source, each an argv (empty: none), run without a shell. Their environment:
// drover-vm(5).
struct Hooks {
    std::vector<std::string> pre_check;       // before anything is touched; may veto
    std::vector<std::string> pre_switchover;  // the VM still runs; may veto
    std::vector<std::string> post_switchover; // the VM runs at the destination: turn the network
    std::vector<std::string> failed;          // after an abort: undo what the others did
};

// /etc/drover/vm.d/NAME.toml.
struct VmFile {
    std::string path; // for messages
    std::string name;
    std::string hypervisor;      // "qemu", "xen" or "none"
    std::vector<DiskSpec> disks; // at least one; the first one's record decides for all
    std::vector<NicSpec> nics;
    NetworkSpec network;
    // What the destination's template is filled with, "memory" = "256M": sent to the peer.
    std::map<std::string, std::string> values;
    // For this host alone, never sent: "qmp" = path of the running VM's QMP socket; "config" = that
    // of its xl configuration.
    std::map<std::string, std::string> local;
    Hooks hooks;
};

// How this site starts a VM that comes in: argv with placeholders, filled from checked values
// only (migrator/command_template.h). Xen has no command, but the names of scripts of its own.
struct HypervisorTemplate {
    std::vector<std::string> command;
    std::vector<std::string> disk_arguments; // once for each disk, at "{disks}" or the end
    std::vector<std::string> nic_arguments;  // once for each NIC, at "{nics}" or the end
    // Values that a VM has, and the regular expression (ECMAScript, whole value) for each.
    // "memory" and "cpus" are there unless drover.toml says otherwise.
    std::map<std::string, std::string> values;
    std::string disk_script, nic_script; // xen; empty: Xen's own
};

struct PortRange {
    uint16_t first = 10809;
    uint16_t last = 10872;
};

// What this site takes from a peer.
struct Limits {
    uint64_t disks = 16;
    uint64_t disk_size = 64 * TiB;
    uint64_t nics = 16;
    uint64_t addresses = 16; // of a NIC that a tunnel carries; and as many gateways
    uint64_t memory = 4 * TiB;
};

// Tunnels to VMs that come in.
struct TunnelSite {
    std::string port;                  // of a NIC, a template; empty: no tunnels
    std::vector<std::string> networks; // that their addresses must be in; empty: any
};

// VMs that come in and stay in a segment that this site shares with theirs.
struct StretchedSite {
    bool allowed = false;
    std::vector<std::string> networks; // that their addresses must be in; empty: any
};

struct Timeouts {
    std::chrono::seconds connect{20};  // a link or the agent to come up
    std::chrono::seconds start{30};    // a disk or a hypervisor to answer after its start
    std::chrono::seconds stop{60};     // the same to end: flushing what is written takes time
    std::chrono::seconds handover{30}; // quiesce: the last of disks and memory, the VM paused
    std::chrono::seconds hook{60};     // a hook
};

struct SiteConfig {
    std::string path; // for messages; the file need not exist: these are the defaults
    std::string images = "/var/lib/drover/images";
    std::vector<std::string> agent_writes; // folders, besides those that every agent may write in
    std::string listen = "*"; // address of the replication ports; "*": all, IPv6 and IPv4
    PortRange ports;
    std::vector<std::string> bridges; // that a VM from a peer may be put on
    std::string socket_group;         // of the VM's NBD socket; empty: unchanged
    mode_t socket_mode = 0600;
    Limits limits;
    TunnelSite tunnel;
    StretchedSite stretched;
    Timeouts timeouts;
    std::map<std::string, HypervisorTemplate> hypervisors; // by name; "none" has none
};

// Reads $DROVER_CONF (Paths::conf). A missing file gives the defaults, unless DROVER_CONF names
// it. Throws Error(usage), "FILE:LINE: 'KEY': what is wrong, what was expected".
SiteConfig load_site_config();
SiteConfig load_site_config(const std::string& path);
// The same, of text; `path` is for messages.
SiteConfig parse_site_config(std::string_view text, const std::string& path);

// The values that a VM of this hypervisor has, with their patterns: of its template, or the
// built-in ones where this site has none.
std::map<std::string, std::string> value_patterns(const SiteConfig& site,
                                                  const std::string& hypervisor);
bool matches_pattern(const std::string& value, const std::string& pattern);

} // namespace drover
