// SPDX-License-Identifier: GPL-2.0-or-later
// Which driver is whose: the one place that knows all of them.
#include "migrator/drivers/none.h"
#include "migrator/drivers/qemu.h"
#include "migrator/drivers/xen.h"
#include "migrator/paths.h"

namespace drover {

std::unique_ptr<OutgoingVm> make_outgoing(const VmFile& vm) {
    if (vm.hypervisor == "qemu") {
        const auto socket = vm.local.find("qmp");
        std::map<std::string, std::string> disks;
        for (const DiskSpec& disk : vm.disks) {
            disks[disk.name] = paths().disk_socket(vm.name, disk.name);
        }
        return std::make_unique<QemuOutgoing>(vm.name,
                                              socket == vm.local.end() ? paths().qmp_socket(vm.name)
                                                                       : socket->second,
                                              paths().vm_run(vm.name) + "/keys",
                                              std::move(disks));
    }
    if (vm.hypervisor == "xen") {
        const auto config = vm.local.find("config");
        return std::make_unique<XenOutgoing>(vm, config == vm.local.end() ? "" : config->second);
    }
    return std::make_unique<NoneOutgoing>();
}

std::unique_ptr<IncomingVm> make_incoming(const IncomingSpec& spec) {
    if (spec.hypervisor == "qemu") {
        return std::make_unique<QemuIncoming>(spec);
    }
    if (spec.hypervisor == "xen") {
        return std::make_unique<XenIncoming>(spec);
    }
    return std::make_unique<NoneIncoming>();
}

} // namespace drover
