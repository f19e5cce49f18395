// SPDX-License-Identifier: GPL-2.0-or-later
// Any text as a VM file ('v' before it) or a drover.toml: refused with Error(usage), or
// within what a VM may be, and a VM file that is written out reads back the same.
#include "migrator/vm_file.h"
#include "test/fuzz/check.h"

using namespace drover;

namespace {

void check_vm(const SiteConfig& site, std::string_view text) {
    const VmFile vm = parse_vm_file(site, text, "FILE", HostCheck::may_be_missing);
    FUZZ_CHECK(valid_name(vm.name));
    FUZZ_CHECK(!vm.disks.empty());
    for (const DiskSpec& disk : vm.disks) {
        FUZZ_CHECK(valid_name(disk.name));
        FUZZ_CHECK(disk.store.file.empty() != disk.store.uri.empty());
    }
    for (const NicSpec& nic : vm.nics) {
        FUZZ_CHECK(valid_mac(nic.mac));
    }
    const std::string written = to_toml(vm);
    FUZZ_CHECK(to_toml(parse_vm_file(site, written, "FILE", HostCheck::may_be_missing)) == written);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const SiteConfig site;
    if (size == 0) {
        return 0;
    }
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        if (data[0] == 'v') {
            check_vm(site, text);
        } else {
            const SiteConfig config = parse_site_config(text, "FILE");
            FUZZ_CHECK(config.ports.first <= config.ports.last && config.ports.first != 0);
        }
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::usage);
    }
    return 0;
}
