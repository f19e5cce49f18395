// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/qemu_blocks.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

using namespace drover;
using Json = nlohmann::json;

namespace {

Json block(const std::string& device, const std::string& file, bool read_only = false) {
    return {{"device", device},
            {"qdev", "/machine/peripheral-anon/device[0]"},
            {"removable", read_only},
            {"inserted", {{"file", file}, {"drv", "raw"}, {"ro", read_only}}}};
}

const std::map<std::string, std::string> disks{{"root", "/run/drover/vm1/root.sock"}};

} // namespace

TEST_CASE("block devices that are no disks of the VM file are told of") {
    const std::string socket = "nbd+unix://?socket=/run/drover/vm1/root.sock";
    const auto levels = [](const Json& blocks) {
        std::string all;
        for (const Finding& finding : qemu::block_findings(blocks, disks)) {
            all += fmt::format("{} {};", level_name(finding.level), finding.about);
        }
        return all;
    };
    const Json root = block("", socket), other = block("virtio1", "/var/lib/other.img");
    CHECK(levels(Json::array({root})) == "ok devices;");
    CHECK(levels({root, {{"device", "cd0"}, {"removable", true}}}) == "ok devices;");
    CHECK(levels({root, other}) == "problem device virtio1;");
    CHECK(levels({root, block("cd0", "/iso/debian.iso", true)}) == "warning device cd0;");
    CHECK(levels({root, block("pflash1", "/var/lib/VARS.fd")}) == "warning device pflash1;");
    CHECK(levels({root, block("virtio1", "json:{\"driver\": \"quorum\"}")}) ==
          "warning device virtio1;");
    CHECK(levels(Json::array()) == "warning disk root;");
    CHECK(levels(Json::array({block("", socket + "2")})) ==
          "warning device /machine/peripheral-anon/device[0];warning disk root;");
    CHECK(
        levels(Json::array({block("", "json:{\"server.path\": \"/run/drover/vm1/root.sock\"}")})) ==
        "ok devices;");
    for (const Json& nothing : {Json(), Json(5), Json{1, nullptr, {{"inserted", 5}}}}) {
        CHECK(levels(nothing) == "warning disk root;");
    }
}

TEST_CASE("a processor that has what the host's has is known by its type") {
    CHECK(qemu::is_host_cpu("host-x86_64-cpu"));
    CHECK(qemu::is_host_cpu("max-arm-cpu"));
    CHECK_FALSE(qemu::is_host_cpu("qemu64-x86_64-cpu"));
}
