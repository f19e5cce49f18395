// SPDX-License-Identifier: GPL-2.0-or-later
// What would be in the way of a VM that is to come here (`drover check`): Destination::check() says
// the first of it, this all that can be told without touching anything.
#include "migrator/agent_params.h"
#include "migrator/ctl.h"
#include "migrator/destination.h"
#include "migrator/drivers/xen_host.h"
#include "migrator/forward_policy.h"
#include "migrator/host_facts.h"
#include "migrator/paths.h"
#include "migrator/tunnels.h"
#include "nbd-proxy/record_store.h"

#include <algorithm>
#include <filesystem>

#include <sys/utsname.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;
using Vm = VmDescription;

// What `look` throws is what is wrong.
template <class Look>
void is_right(Findings& found, const std::string& about, Look look) {
    try {
        look();
    } catch (const Error& error) {
        found.push_back({Level::problem, about, error.what(), ""});
    }
}

// The same of a description, where it is one.
template <class Look>
bool is_allowed(Findings& found, Look look) {
    try {
        look();
        return true;
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::refused) {
            throw;
        }
        found.push_back({Level::problem, "drover.toml", error.what(), ""});
        return false;
    }
}

void look_for_others(Findings& found, const std::string& vm) {
    if (RunLock(paths().agent_lock(vm)).is_held()) {
        found.push_back({Level::problem,
                         "VM " + vm,
                         "another migration of it to this host is under way",
                         "wait for its end, or `drover abort " + vm + "` where it comes from"});
        return;
    }
    const auto journal = read_journal(paths().journal(vm));
    if (!journal || journal->over()) {
        return;
    }
    if (journal->text("side") == "destination") {
        found.push_back({Level::note,
                         "VM " + vm,
                         "a migration to this host was interrupted; the next one puts away what it "
                         "has left",
                         ""});
    } else {
        found.push_back({Level::problem,
                         "VM " + vm,
                         "a migration of it from this host has not come to its end",
                         "`drover recover " + vm + "` at this host"});
    }
}

// --- where the disks go

struct Need {
    Space space;
    uint64_t used = 0, whole = 0; // bytes that are not there yet
};

void look_at_device(Findings& found, const Vm::Disk& disk, const std::string& path) {
    const auto size = device_size(path);
    if (!size) {
        found.push_back({Level::problem,
                         "disk " + disk.name,
                         fmt::format("{} is no block device that can be opened here", path),
                         fmt::format("make it, of {} bytes, or change the VM's file in {}",
                                     disk.size,
                                     paths().vm_files())});
    } else if (*size < disk.size) {
        found.push_back(
            {Level::problem,
             "disk " + disk.name,
             fmt::format(
                 "{} has {}, the disk {}", path, format_size(*size), format_size(disk.size)),
             fmt::format("make it larger: {} bytes", disk.size)});
    }
}

bool is_of_devices(const std::string& path) {
    return path.starts_with("/dev/");
}

void look_at_space(Findings& found, const std::vector<Need>& needs) {
    for (const Need& need : needs) {
        const std::string& folder = need.space.folder;
        const uint64_t free = need.space.free_bytes;
        if (!need.space.writable) {
            found.push_back({Level::problem,
                             "images",
                             fmt::format("{} can't be written to", folder),
                             "change its owner or permissions, or 'images' of drover.toml there"});
        } else if (free < need.used) {
            found.push_back({Level::problem,
                             "images",
                             fmt::format("{} has {} free, what the disks hold now takes {}",
                                         folder,
                                         format_size(free),
                                         format_size(need.used)),
                             fmt::format("free {} there, or set 'images' of drover.toml to another "
                                         "file system",
                                         format_size(need.used - free))});
        } else if (free < need.whole) {
            found.push_back({Level::warning,
                             "images",
                             fmt::format("{} has {} free: enough for what the disks hold now ({}), "
                                         "and not if the guest fills them ({})",
                                         folder,
                                         format_size(free),
                                         format_size(need.used),
                                         format_size(need.whole)),
                             fmt::format("keep {} free there", format_size(need.whole))});
        } else {
            found.push_back({Level::ok,
                             "images",
                             fmt::format("{} has {} free, the disks need {} at most",
                                         folder,
                                         format_size(free),
                                         format_size(need.whole)),
                             ""});
        }
    }
}

// Of an image that is there, or that has been set aside when the disk left: it is taken again.
uint64_t bytes_there(const std::string& vm, const std::string& disk, const std::string& file) {
    const auto record = peek_record(paths().disk_state(vm, disk));
    const uint64_t aside =
        record && !record->fenced_image.empty() ? allocated_bytes(record->fenced_image) : 0;
    return std::max(allocated_bytes(file), aside);
}

void look_at_stores(Findings& found,
                    const std::vector<std::unique_ptr<DestinationDisk>>& disks,
                    const Vm& vm,
                    const std::map<std::string, uint64_t>& used) {
    std::vector<Need> needs;
    for (size_t i = 0; i < disks.size(); ++i) {
        const Vm::Disk& disk = vm.disks[i];
        const std::string file = disks[i]->store().file;
        if (file.empty()) {
            found.push_back({Level::note,
                             "disk " + disk.name,
                             fmt::format("the size of {} was not looked at", disks[i]->store().uri),
                             ""});
            continue;
        }
        if (is_of_devices(file)) {
            look_at_device(found, disk, file);
            continue;
        }
        const auto space = space_for(file);
        if (!space) {
            found.push_back(
                {Level::problem,
                 "disk " + disk.name,
                 fmt::format("no file can be made as {}: what is above it is no folder", file),
                 "set 'images' of drover.toml there to a folder"});
            continue;
        }
        auto need = std::find_if(needs.begin(), needs.end(), [&](const Need& each) {
            return each.space.device == space->device;
        });
        if (need == needs.end()) {
            need = needs.insert(needs.end(), Need{*space});
        }
        const uint64_t there = bytes_there(vm.name, disk.name, file);
        const auto known = used.find(disk.name);
        const uint64_t now = known == used.end() ? disk.size : std::min(known->second, disk.size);
        need->used += now - std::min(now, there);
        need->whole += disk.size - std::min(disk.size, there);
    }
    look_at_space(found, needs);
}

// --- what starts it

// Its monitor's socket is Drover's own.
bool has_listener(const std::string& path) {
    try {
        ControlClient(path).peer_pid();
        return true;
    } catch (const Error&) {
        return false;
    }
}

void look_at_program(Findings& found, const HypervisorTemplate& how, const std::string& path) {
    const std::string& program = how.command.front();
    if (program.find('{') == std::string::npos && !has_program(program)) {
        found.push_back({Level::problem,
                         "hypervisor",
                         fmt::format("{}, of [hypervisor.qemu] of {}, is no program that this host "
                                     "has",
                                     program,
                                     path),
                         "install it, or give its absolute path"});
    } else {
        found.push_back({Level::ok, "hypervisor", program + " starts it", ""});
    }
}

void look_at_memory(Findings& found, const Vm& vm) {
    const auto memory = vm.values.find("memory");
    const auto wanted = memory == vm.values.end() ? std::nullopt : parse_size(memory->second);
    const auto available = available_memory();
    if (wanted && available && *available < *wanted) {
        found.push_back({Level::warning,
                         "memory",
                         fmt::format("this host has {} available, the VM has {}",
                                     format_size(*available),
                                     memory->second),
                         fmt::format("end what takes {}, or move the VM elsewhere",
                                     format_size(*wanted - *available))});
    } else if (wanted && available) {
        found.push_back(
            {Level::ok,
             "memory",
             fmt::format("{} available, the VM has {}", format_size(*available), memory->second),
             ""});
    }
}

void look_for_domain(Findings& found, const std::string& vm) {
    is_right(found, "xen", [&] {
        const auto host = open_xen_host();
        if (const auto id = host->find(vm)) {
            found.push_back({Level::problem,
                             "xen",
                             fmt::format("a domain {} is here already, with id {}", vm, *id),
                             "end it, or rename it: `xl rename`"});
        } else {
            found.push_back({Level::ok, "xen", "libxl answers, and the domain's name is free", ""});
        }
    });
}

// A command that goes into another network namespace first has its bridges there.
bool leaves_the_network(const HypervisorTemplate& how) {
    const std::string program =
        how.command.empty() ? "" : std::filesystem::path(how.command.front()).filename().string();
    return program == "nsenter" || program == "ip";
}

void look_at_bridges(Findings& found, const Vm& vm, const HypervisorTemplate& how) {
    std::vector<std::string> bridges;
    for (const NicSpec& nic : vm.nics) {
        if (nic.bridge.empty()) {
            continue;
        }
        if (is_bridge(nic.bridge)) {
            bridges.push_back(nic.bridge);
        } else if (leaves_the_network(how)) {
            found.push_back(
                {Level::note,
                 "NIC " + nic.mac,
                 fmt::format("its bridge {} was not looked for in the network namespace "
                             "that the command enters",
                             nic.bridge),
                 ""});
        } else {
            found.push_back({Level::problem,
                             "NIC " + nic.mac,
                             fmt::format("this host has no bridge {}", nic.bridge),
                             fmt::format("`ip link add {0} type bridge` and `ip link set {0} up`, "
                                         "with this site's network attached, or name another one "
                                         "in the VM file",
                                         nic.bridge)});
        }
    }
    if (!bridges.empty()) {
        found.push_back(
            {Level::ok, "bridges", fmt::format("{} there", fmt::join(bridges, ", ")), ""});
    }
    const Findings firewall = forward_findings(bridges, "the VM's frames");
    found.insert(found.end(), firewall.begin(), firewall.end());
}

// The egress hook of nf_tables came with Linux 5.16.
bool has_egress_hook() {
    utsname system{};
    unsigned major = 0, minor = 0;
    return ::uname(&system) == 0 && std::sscanf(system.release, "%u.%u", &major, &minor) == 2 &&
           (major > 5 || (major == 5 && minor >= 16));
}

void look_at_tunnel(Findings& found) {
    const size_t before = found.size();
    const Findings host = tunnel_host_findings();
    found.insert(found.end(), host.begin(), host.end());
    if (!has_egress_hook()) {
        found.push_back({Level::problem,
                         "tunnel",
                         "this kernel has no egress hook of nf_tables",
                         "boot Linux 5.16 or newer"});
    }
    if (found.size() == before) {
        found.push_back({Level::ok, "tunnel", "an away end can be put up here", ""});
    }
}

} // namespace

void Destination::survey_disks(Findings& found) const {
    const size_t before = found.size();
    is_right(found, "VM name", [this] { refuse_own_vm(); });
    is_right(found, "VM file", [this] {
        require_arrived_vm_file(paths().arrived_vm_file(vm_.name), vm_.name);
    });
    is_right(found, "VM " + vm_.name, [&] { look_for_others(found, vm_.name); });
    for (const auto& disk : disks_) {
        is_right(found, "disk " + disk->name(), [&] { disk->check(); });
    }
    if (found.size() == before) {
        found.push_back(
            {Level::ok, "VM name", fmt::format("{} and its disks may come here", vm_.name), ""});
    }
}

void Destination::survey_hypervisor(Findings& found) const {
    const HypervisorTemplate& how = site_.hypervisors.at(vm_.hypervisor);
    if (vm_.hypervisor == "xen") {
        look_for_domain(found, vm_.name);
    } else {
        look_at_program(found, how, site_.path);
        if (has_listener(paths().qmp_socket(vm_.name))) {
            found.push_back({Level::problem,
                             "hypervisor",
                             fmt::format("a hypervisor listens on {}: {} runs here",
                                         paths().qmp_socket(vm_.name),
                                         vm_.name),
                             "end it"});
        }
    }
    look_at_memory(found, vm_);
    look_at_bridges(found, vm_, how);
    if (vm_.tunnel) {
        look_at_tunnel(found);
    }
}

Json Destination::survey(const Json& params) {
    rpc::only_params(params, {"vm", "disk_only", "bases", "used"});
    if (stage_ != Stage::blank) {
        throw Error(ErrorKind::state, "survey: a migration is under way");
    }
    const std::map<std::string, uint64_t> used = used_param(params);
    const Json vm = params.value("vm", Json());
    disk_only_ = rpc::bool_param(params, "disk_only", false);
    Findings found;
    bool allowed = is_allowed(found, [&] { vm_ = check_description(site_, vm, disk_only_); });
    // Where its hypervisor, NICs or values are refused, its disks can be looked at all the same.
    Findings again;
    if (allowed || is_allowed(again, [&] { vm_ = check_description(site_, vm, true); })) {
        make_disks();
        set_bases(params.value("bases", Json::object()));
        survey_disks(found);
        is_right(found, "images", [&] { look_at_stores(found, disks_, vm_, used); });
    }
    if (allowed && has_hypervisor()) {
        survey_hypervisor(found);
    }
    const Cpu cpu = this_cpu();
    Json answer{{"findings", Json::array()},
                {"at_home", allowed && has_tunnel(tunnel_ends(vm_.name), true)},
                {"kvm", has_device("/dev/kvm")},
                {"cpu", {{"model", cpu.model}, {"flags", cpu.flags}}}};
    for (const Finding& finding : found) {
        answer["findings"].push_back(finding_json(finding));
    }
    return answer;
}

} // namespace drover
