// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/check.h"

#include <doctest/doctest.h>

using namespace drover;

TEST_CASE("a VM with the host's processor needs what that has") {
    Inspection vm;
    Survey there;
    const Cpu here{"A", {"avx", "sse"}};
    there.cpu = {"B", {"sse", "x"}};
    there.kvm = true;
    CHECK(cpu_findings(vm, here, there).empty());
    vm.kvm = true;
    CHECK(cpu_findings(vm, here, there).empty());
    vm.host_cpu = true;
    const Findings found = cpu_findings(vm, here, there);
    REQUIRE(found.size() == 1);
    CHECK(found[0].level == Level::warning);
    CHECK(found[0].text.find("lacks avx") != std::string::npos);
    there.cpu.flags.insert("avx");
    CHECK(cpu_findings(vm, here, there).empty());
    there.kvm = false;
    CHECK(cpu_findings(vm, here, there).size() == 1);
}
