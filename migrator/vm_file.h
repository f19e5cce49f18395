// SPDX-License-Identifier: GPL-2.0-or-later
// VM files, and the description of a VM that travels to the destination.
#pragma once

#include "migrator/config.h"

#include <nlohmann/json.hpp>

namespace drover {

// Whether what the file names on this host (images, hooks, a monitor's socket) must be there.
enum class HostCheck { must_exist, may_be_missing };

// name_or_path: with a '/' or ending in ".toml" a path; else a name: vm.d/NAME.toml beside
// drover.toml, or the file that the agent left for a VM that came in. Throws Error(usage),
// "FILE:LINE: 'KEY': ..."; Error(refused) for a file of the agent's that is damaged, edited or
// newer.
VmFile load_vm_file(const SiteConfig& site, const std::string& name_or_path, HostCheck check);
VmFile parse_vm_file(const SiteConfig& site,
                     std::string_view text,
                     const std::string& path,
                     HostCheck check);

// What the agent leaves at Paths::arrived_vm_file. Throws Error(io); Error(refused), with nothing
// changed, where it did not write the file that is there, or that is damaged.
void keep_arrived_vm_file(const std::string& path, const VmFile& vm);
// Whether it could be kept: throws the same.
void require_arrived_vm_file(const std::string& path, const std::string& vm);

// The names that load_vm_file finds, sorted.
std::vector<std::string> vm_names();

// Text that parse_vm_file reads back to the same (path apart).
std::string to_toml(const VmFile& vm);

// A VM as the peer describes it (docs/control.md, `prepare` of the agent).
struct VmDescription {
    struct Disk {
        std::string name;
        std::string uuid;
        uint64_t size = 0;       // bytes
        uint64_t block_size = 0; // bytes
    };
    std::string name;
    std::string hypervisor;
    std::vector<Disk> disks;
    std::vector<NicSpec> nics;
    std::map<std::string, std::string> values;
    bool tunnel = false;    // it wants one for each NIC with addresses
    bool stretched = false; // the segments of these are to be told that it is here
};

// Checks every part of it against this site's patterns and limits. With disk_only no template
// is asked for, and NICs and values are not looked at. Throws Error(refused) that names
// what is not allowed and the setting that would allow it.
VmDescription check_description(const SiteConfig& site, const nlohmann::json& vm, bool disk_only);

// The port of a NIC of a VM that comes in, as [tunnel] of this site has it. Throws Error(refused).
std::string tunnel_port(const SiteConfig& site, const VmDescription& vm, size_t nic);

// For the source. `disks` as their plugins' status gave them; `values` come on top of the file's.
nlohmann::json describe(const VmFile& vm,
                        const std::vector<VmDescription::Disk>& disks,
                        const std::map<std::string, std::string>& values = {},
                        NetworkSpec::Mode network = NetworkSpec::Mode::none);

// Where a disk that comes in is put: as this site's own VM file of that name says (a volume
// made ready by the operator), else IMAGES/VM/DISK.img. Throws Error(usage) if there
// is a VM file that does not know the disk.
DiskStore destination_store(const SiteConfig& site, const std::string& vm, const std::string& disk);

} // namespace drover
