// SPDX-License-Identifier: GPL-2.0-or-later
// Any line that the agent is sent: its parameters are refused with an error that can be answered,
// or they are within what this site allows, and no name in them leaves the folders that it is put
// in.
#include "migrator/agent_params.h"
#include "migrator/command_template.h"
#include "migrator/vm_file.h"
#include "test/fuzz/check.h"

#include <algorithm>

using namespace drover;
using rpc::Json;

namespace {

const SiteConfig& site() {
    static const SiteConfig config = parse_site_config(R"(
        images = "/images"
        bridges = ["br0"]
        [stretched]
        networks = ["10.0.0.0/8", "2001:db8::/32"]
        [limits]
        disks = 2
        disk-size = "1G"
        memory = "1G"
        nics = 1
        [hypervisor.qemu]
        command = ["qemu", "-m", "{memory}", "-name", "{label}", "-qmp", "unix:{qmp}", "{disks}", "{nics}"]
        disk-arguments = ["-drive", "{disk.index}:{disk.socket}"]
        nic-arguments = ["-nic", "{nic.mac},{nic.bridge},{vm}"]
        [hypervisor.qemu.values]
        label = "[a-z ]*"
    )",
                                                       "FILE");
    return config;
}

void check_name(const std::string& name) {
    FUZZ_CHECK(valid_name(name));
    FUZZ_CHECK(name.find('/') == std::string::npos && name[0] != '.');
}

void check_vm(const Json& params) {
    const bool disk_only = rpc::bool_param(params, "disk_only", false);
    const VmDescription vm = check_description(site(), params.value("vm", Json()), disk_only);
    check_name(vm.name);
    FUZZ_CHECK(!vm.disks.empty() && vm.disks.size() <= 2);
    CommandValues values{vm.name, "qmp", {}, vm.nics, vm.values};
    for (const VmDescription::Disk& disk : vm.disks) {
        check_name(disk.name);
        FUZZ_CHECK(disk.size > 0 && disk.size <= GiB);
        FUZZ_CHECK(disk.block_size >= 4 * KiB && disk.block_size <= MiB);
        values.disks.push_back({disk.name, "socket"});
    }
    FUZZ_CHECK(vm.nics.size() <= 1);
    for (const NicSpec& nic : vm.nics) {
        FUZZ_CHECK(valid_mac(nic.mac) && (nic.bridge.empty() || nic.bridge == "br0"));
        FUZZ_CHECK(!vm.stretched || nic.addresses.empty() || nic.bridge == "br0");
    }
    if (disk_only || vm.hypervisor != "qemu") {
        return;
    }
    // Nothing that came in makes an argument of its own, or an option.
    const auto command = expand_command(site().hypervisors.at("qemu"), values);
    FUZZ_CHECK(command.size() == 7 + 2 * vm.disks.size() + 2 * vm.nics.size());
    FUZZ_CHECK(command[0] == "qemu" && command[1] == "-m" && command[2] == vm.values.at("memory"));
    // What keep_vm_file() keeps of it can be read again.
    VmFile file;
    file.name = vm.name;
    file.hypervisor = vm.hypervisor;
    file.nics = vm.nics;
    file.values = vm.values;
    for (const VmDescription::Disk& disk : vm.disks) {
        file.disks.push_back({disk.name, {"/images/" + disk.name, ""}});
    }
    const std::string written = to_toml(file);
    FUZZ_CHECK(to_toml(parse_vm_file(site(), written, "FILE", HostCheck::may_be_missing)) ==
               written);
}

void check_params(const rpc::Request& request) {
    const Json& params = request.params;
    if (request.method == "records" || request.method == "hashes") {
        const NamedDisks named = named_disks_param(params, request.method == "hashes");
        check_name(named.vm);
        for (const NamedDisks::Disk& disk : named.disks) {
            check_name(disk.name);
        }
    } else if (request.method == "promote") {
        FUZZ_CHECK(hex_param(params, "token", 64).size() == 64);
    } else if (request.method == "probe") {
        const ProbeParams probe = probe_params(site(), params);
        FUZZ_CHECK(probe.word.size() == 32 && probe.tcp <= 3 && probe.udp <= 1);
    } else {
        used_param(params); // of `survey`
        check_vm(params);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        const auto message = rpc::parse({reinterpret_cast<const char*>(data), size});
        if (const auto* const request = std::get_if<rpc::Request>(&message)) {
            check_params(*request);
        }
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::usage || error.kind() == ErrorKind::refused);
    }
    return 0;
}
