// SPDX-License-Identifier: GPL-2.0-or-later
// The description of a VM that travels: made at the source, checked at the destination.
#include "common/json_rpc.h"
#include "migrator/command_template.h"
#include "migrator/paths.h"
#include "migrator/vm_file.h"
#include "tunnel/core/address.h"

#include <algorithm>
#include <regex>
#include <set>

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

[[noreturn]] void refuse(const std::string& what) {
    throw Error(ErrorKind::refused, what);
}

// What a peer sent, shortened, and never raw in a message that is printed on a terminal.
std::string shown(const std::string& text) {
    std::string out;
    for (const char c : text.substr(0, 80)) {
        out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    }
    return out;
}

const Json&
array_of_objects(const Json& vm, const char* key, uint64_t most, const std::string& setting) {
    static const Json none = Json::array();
    const auto found = vm.find(key);
    if (found == vm.end()) {
        return none;
    }
    if (!found->is_array() ||
        !std::all_of(found->begin(), found->end(), [](const Json& e) { return e.is_object(); })) {
        throw Error(ErrorKind::usage,
                    fmt::format("parameter '{}': an array of objects is expected", key));
    }
    if (found->size() > most) {
        refuse(fmt::format("the VM has {} {}: {} allows {}", found->size(), key, setting, most));
    }
    return *found;
}

VmDescription::Disk check_disk(const SiteConfig& site, const Json& params) {
    static const std::regex uuid("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}");
    rpc::only_params(params, {"name", "uuid", "size", "block_size"});
    VmDescription::Disk disk;
    disk.name = rpc::string_param(params, "name");
    disk.uuid = rpc::string_param(params, "uuid");
    disk.size = rpc::uint_param(params, "size");
    disk.block_size = rpc::uint_param(params, "block_size");
    if (!valid_disk_name(disk.name)) {
        refuse(fmt::format("'{}' is no name of a disk", shown(disk.name)));
    }
    if (disk.uuid.size() > 36 || !std::regex_match(disk.uuid, uuid)) {
        refuse(fmt::format("disk {}: '{}' is no UUID", disk.name, shown(disk.uuid)));
    }
    if (disk.size == 0 || disk.size > site.limits.disk_size) {
        refuse(fmt::format("disk {} has {}: limits.disk-size of {} allows {}",
                           disk.name,
                           format_size(disk.size),
                           site.path,
                           format_size(site.limits.disk_size)));
    }
    if (disk.block_size < 4 * KiB || disk.block_size > MiB ||
        (disk.block_size & (disk.block_size - 1)) != 0) {
        refuse(fmt::format(
            "disk {}: a block size of {} bytes: a power of two from 4 KiB to 1 MiB is expected",
            disk.name,
            disk.block_size));
    }
    return disk;
}

// `valid`: what each of them must be.
std::vector<std::string> check_list(const Json& params,
                                    const char* key,
                                    bool (*valid)(std::string_view),
                                    const std::string& what) {
    const Json list = params.value(key, Json::array());
    std::vector<std::string> found;
    for (const Json& entry : list.is_array() ? list : Json::array({list})) {
        if (!entry.is_string() || !valid(entry.get<std::string>())) {
            refuse(what);
        }
        found.push_back(entry);
    }
    return found;
}

NicSpec check_nic(const SiteConfig& site, const Json& params) {
    rpc::only_params(params, {"mac", "bridge", "addresses", "gateways", "link_locals"});
    NicSpec nic;
    nic.mac = rpc::string_param(params, "mac");
    nic.bridge = rpc::optional_string_param(params, "bridge").value_or("");
    if (!valid_mac(nic.mac)) {
        refuse(fmt::format("'{}' is no Ethernet address of a card", shown(nic.mac)));
    }
    const bool allowed =
        std::find(site.bridges.begin(), site.bridges.end(), nic.bridge) != site.bridges.end();
    if (!nic.bridge.empty() && !allowed) {
        refuse(fmt::format("the VM wants the bridge '{}': 'bridges' of {} does not allow it",
                           shown(nic.bridge),
                           site.path));
    }
    nic.addresses =
        check_list(params,
                   "addresses",
                   valid_address,
                   fmt::format("NIC {}: addresses with a prefix length are expected", nic.mac));
    nic.gateways = check_list(params,
                              "gateways",
                              valid_ip,
                              fmt::format("NIC {}: addresses of gateways are expected", nic.mac));
    nic.link_locals = check_list(params,
                                 "link_locals",
                                 valid_ip,
                                 fmt::format("NIC {}: link-local addresses are expected", nic.mac));
    return nic;
}

// `setting`: of this site, whose addresses a NIC may have; empty `networks`: any.
void check_addresses(const SiteConfig& site,
                     const NicSpec& nic,
                     const std::vector<std::string>& networks,
                     const std::string& setting) {
    if (std::max({nic.addresses.size(), nic.gateways.size(), nic.link_locals.size()}) >
        site.limits.addresses) {
        refuse(fmt::format("NIC {} has {} addresses, {} gateways and {} link-local addresses: "
                           "limits.addresses of {} allows {} of each",
                           nic.mac,
                           nic.addresses.size(),
                           nic.gateways.size(),
                           nic.link_locals.size(),
                           site.path,
                           site.limits.addresses));
    }
    for (const std::string& address : nic.addresses) {
        const tunnel::Ip ip = tunnel::parse_prefix(address).value().address;
        const bool allowed =
            std::any_of(networks.begin(), networks.end(), [&](const auto& network) {
                return tunnel::parse_prefix(network).value().covers(ip);
            });
        if (!networks.empty() && !allowed) {
            refuse(fmt::format("the VM wants to keep {}: {} of {} does not allow it",
                               address,
                               setting,
                               site.path));
        }
    }
}

// What it asks of a tunnel; `vm` is checked otherwise.
void check_tunnel(const SiteConfig& site, const VmDescription& vm) {
    if (site.tunnel.port.empty()) {
        refuse(fmt::format("the VM wants to keep its addresses by a tunnel: {} has no [tunnel]",
                           site.path));
    }
    for (size_t i = 0; i < vm.nics.size(); ++i) {
        if (!vm.nics[i].addresses.empty()) {
            check_addresses(site, vm.nics[i], site.tunnel.networks, "tunnel.networks");
            tunnel_port(site, vm, i);
        }
    }
}

// Likewise, that it stays in its segment.
void check_stretched(const SiteConfig& site, const VmDescription& vm) {
    if (!site.stretched.allowed) {
        refuse(fmt::format("the VM is to stay in its segment: {} has no [stretched]", site.path));
    }
    for (const NicSpec& nic : vm.nics) {
        if (nic.addresses.empty()) {
            continue;
        }
        check_addresses(site, nic, site.stretched.networks, "stretched.networks");
        if (nic.bridge.empty()) {
            refuse(fmt::format("the VM is to stay in its segment: NIC {} has no bridge", nic.mac));
        }
    }
}

void check_memory(const SiteConfig& site,
                  const std::map<std::string, std::string>& values,
                  const char* name) {
    const auto memory = values.find(name);
    if (memory == values.end()) {
        return;
    }
    const auto bytes = parse_size(memory->second);
    if (!bytes || *bytes > site.limits.memory) {
        refuse(fmt::format("the VM has {} of memory: limits.memory of {} allows {}",
                           memory->second,
                           site.path,
                           format_size(site.limits.memory)));
    }
}

std::map<std::string, std::string>
check_values(const SiteConfig& site, const std::string& hypervisor, const Json& vm) {
    const Json params = vm.value("values", Json::object());
    if (!params.is_object()) {
        throw Error(ErrorKind::usage, "parameter 'values': an object is expected");
    }
    const auto patterns = value_patterns(site, hypervisor);
    std::map<std::string, std::string> values;
    for (const auto& [name, value] : params.items()) {
        const auto pattern = patterns.find(name);
        if (pattern == patterns.end()) {
            refuse(fmt::format(
                "the VM has a value '{}': [hypervisor.{}.values] of {} does not know it",
                shown(name),
                hypervisor,
                site.path));
        }
        if (!value.is_string() || !matches_pattern(value.get<std::string>(), pattern->second)) {
            refuse(fmt::format("'{}' of the VM does not match {}, which {} asks for",
                               name,
                               pattern->second,
                               site.path));
        }
        values[name] = value;
    }
    check_memory(site, values, "memory");
    check_memory(site, values, "max-memory");
    return values;
}

// All that a domain is made from: the source's driver knows it.
void check_xen(const SiteConfig& site, const VmDescription& vm) {
    for (const auto& [name, pattern] : value_patterns(site, vm.hypervisor)) {
        if (!vm.values.contains(name)) {
            refuse(fmt::format("the VM has no value '{}'", name));
        }
    }
    const std::string& vdevs = vm.values.at("vdevs");
    if (std::count(vdevs.begin(), vdevs.end(), ',') + 1 != std::ssize(vm.disks)) {
        refuse(fmt::format("'vdevs' of the VM does not name its {} disks", vm.disks.size()));
    }
}

// That the template can be filled: found now, not when the VM is paused.
void try_template(const SiteConfig& site, const VmDescription& vm) {
    CommandValues values{vm.name, "qmp", {}, vm.nics, vm.values};
    for (const VmDescription::Disk& disk : vm.disks) {
        values.disks.push_back({disk.name, "socket"});
    }
    try {
        expand_command(site.hypervisors.at(vm.hypervisor), values);
    } catch (const Error& error) {
        refuse(fmt::format("[hypervisor.{}] of {}: {}", vm.hypervisor, site.path, error.what()));
    }
}

} // namespace

VmDescription check_description(const SiteConfig& site, const Json& vm, bool disk_only) {
    if (!vm.is_object()) {
        throw Error(ErrorKind::usage, "parameter 'vm': an object is expected");
    }
    rpc::only_params(vm, {"name", "hypervisor", "disks", "nics", "values", "tunnel", "stretched"});
    VmDescription found;
    found.name = rpc::string_param(vm, "name");
    found.hypervisor = rpc::string_param(vm, "hypervisor");
    if (!valid_name(found.name)) {
        refuse(fmt::format("'{}' is no name of a VM", shown(found.name)));
    }
    if (!known_hypervisor(found.hypervisor)) {
        refuse(
            fmt::format("this version does not know the hypervisor '{}'", shown(found.hypervisor)));
    }
    std::set<std::string> names;
    for (const Json& disk :
         array_of_objects(vm, "disks", site.limits.disks, "limits.disks of " + site.path)) {
        found.disks.push_back(check_disk(site, disk));
        if (!names.insert(found.disks.back().name).second) {
            refuse(fmt::format("two disks are called '{}'", found.disks.back().name));
        }
    }
    if (found.disks.empty()) {
        refuse("the VM has no disk");
    }
    if (disk_only || found.hypervisor == "none") {
        return found;
    }
    if (!site.hypervisors.contains(found.hypervisor)) {
        refuse(fmt::format("{} has no [hypervisor.{}]: this site does not know how to start the VM",
                           site.path,
                           found.hypervisor));
    }
    for (const Json& nic :
         array_of_objects(vm, "nics", site.limits.nics, "limits.nics of " + site.path)) {
        found.nics.push_back(check_nic(site, nic));
    }
    found.values = check_values(site, found.hypervisor, vm);
    if (found.hypervisor == "xen") {
        check_xen(site, found);
    } else {
        try_template(site, found);
    }
    found.tunnel = rpc::bool_param(vm, "tunnel", false);
    if (found.tunnel) {
        check_tunnel(site, found);
    }
    found.stretched = rpc::bool_param(vm, "stretched", false);
    if (found.stretched && found.tunnel) {
        refuse("the VM wants a tunnel, and to stay in its segment");
    }
    if (found.stretched) {
        check_stretched(site, found);
    }
    return found;
}

std::string tunnel_port(const SiteConfig& site, const VmDescription& vm, size_t nic) {
    const CommandValues values{vm.name, "qmp", {}, vm.nics, vm.values};
    std::string port;
    try {
        port = expand_nic_word(site.tunnel.port, values, nic);
    } catch (const Error& error) {
        refuse(fmt::format("tunnel.port of {}: {}", site.path, error.what()));
    }
    if (!valid_bridge(port)) {
        refuse(fmt::format("tunnel.port of {} makes '{}', which is no name of an interface",
                           site.path,
                           shown(port)));
    }
    return port;
}

Json describe(const VmFile& vm,
              const std::vector<VmDescription::Disk>& disks,
              const std::map<std::string, std::string>& values,
              NetworkSpec::Mode network) {
    Json described{{"name", vm.name},
                   {"hypervisor", vm.hypervisor},
                   {"disks", Json::array()},
                   {"nics", Json::array()},
                   {"values", Json(vm.values)}};
    for (const VmDescription::Disk& disk : disks) {
        described["disks"].push_back({{"name", disk.name},
                                      {"uuid", disk.uuid},
                                      {"size", disk.size},
                                      {"block_size", disk.block_size}});
    }
    for (const NicSpec& nic : vm.nics) {
        Json entry{{"mac", nic.mac}, {"addresses", nic.addresses}};
        if (!nic.bridge.empty()) {
            entry["bridge"] = nic.bridge;
        }
        if (!nic.gateways.empty()) {
            entry["gateways"] = nic.gateways;
        }
        if (!nic.link_locals.empty()) {
            entry["link_locals"] = nic.link_locals;
        }
        described["nics"].push_back(entry);
    }
    for (const auto& [name, value] : values) {
        described["values"][name] = value;
    }
    if (network == NetworkSpec::Mode::stretched) {
        described["stretched"] = true;
    }
    if (network == NetworkSpec::Mode::tunnel) {
        described["tunnel"] = true;
    }
    return described;
}

DiskStore
destination_store(const SiteConfig& site, const std::string& vm, const std::string& disk) {
    const std::string path = paths().vm_files() + "/" + vm + ".toml";
    if (::access(path.c_str(), F_OK) != 0) {
        return {fmt::format("{}/{}/{}.img", site.images, vm, disk), ""};
    }
    const VmFile own = load_vm_file(site, path, HostCheck::may_be_missing);
    const auto found = std::find_if(
        own.disks.begin(), own.disks.end(), [&disk](const DiskSpec& d) { return d.name == disk; });
    if (found == own.disks.end()) {
        throw Error(
            ErrorKind::usage,
            fmt::format("{}: it has no disk '{}': add it, or remove the file for an image in {}",
                        path,
                        disk,
                        site.images));
    }
    return found->store;
}

} // namespace drover
