// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/finding.h"
#include "migrator/host_facts.h"

#include <doctest/doctest.h>

using namespace drover;

TEST_CASE("/proc is read as it comes") {
    const Cpu cpu = parse_cpuinfo("processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu "
                                  "sse2\nbugs\t:\n\nprocessor\t: 1\nflags\t: other\n");
    CHECK(cpu.model == "Some CPU @ 2GHz");
    CHECK((cpu.flags == std::set<std::string>{"fpu", "sse2"}));
    CHECK(parse_cpuinfo("").flags.empty());
    CHECK(parse_available_memory("MemTotal: 9 kB\nMemAvailable:    4096 kB\n") == 4096 * 1024);
    CHECK_FALSE(parse_available_memory("MemAvailableX: 1\nMemAvailable: x\n"));
}

TEST_CASE("a finding is one line") {
    const Finding finding{Level::problem, "disk root", "not served", "`drover serve vm`"};
    CHECK(finding_line("here", finding) ==
          "problem  here: disk root: not served. To do: `drover serve vm`");
    CHECK(finding_line("b", {Level::ok, "agent", "answers", ""}) == "ok       b: agent: answers");
    for (const Level level : {Level::ok, Level::note, Level::warning, Level::problem}) {
        CHECK(parse_level(level_name(level)) == level);
    }
    CHECK_FALSE(parse_level("bad"));
}
