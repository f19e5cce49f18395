// SPDX-License-Identifier: GPL-2.0-or-later
// What a peer says of a VM, and the command that this site makes of it.
#include "migrator/command_template.h"
#include "migrator/vm_file.h"

#include <doctest/doctest.h>

using namespace drover;
using Json = nlohmann::json;

namespace {

SiteConfig site_with_qemu() {
    return parse_site_config(R"(
        bridges = ["br0"]
        [limits]
        disks = 2
        disk-size = "1G"
        memory = "1G"
        nics = 1
        [hypervisor.qemu]
        command = ["qemu", "-m", "{memory}", "-qmp", "unix:{qmp}", "{disks}", "-boot", "{disk.0.name}", "{nics}", "{{x}}"]
        disk-arguments = ["-drive", "{disk.index}:{disk.socket}"]
        nic-arguments = ["-nic", "{nic.mac},{nic.bridge},{vm}"]
    )",
                             "drover.toml");
}

Json good() {
    return Json::parse(R"({"name": "vm1", "hypervisor": "qemu",
        "disks": [{"name": "root", "uuid": "0123456789abcdef0123456789abcdef", "size": 1048576, "block_size": 65536}],
        "nics": [{"mac": "02:00:00:00:00:10", "bridge": "br0", "addresses": ["10.1.0.10/24"]}],
        "values": {"memory": "256M"}})");
}

// The message that a change of the good description is refused with.
std::string refused(const char* pointer, const Json& value, bool disk_only = false) {
    Json vm = good();
    vm[Json::json_pointer(pointer)] = value;
    try {
        check_description(site_with_qemu(), vm, disk_only);
    } catch (const Error& error) {
        return error.what();
    }
    return "not refused";
}

} // namespace

TEST_CASE("a good description passes, and what describe makes passes") {
    const VmDescription vm = check_description(site_with_qemu(), good(), false);
    CHECK(vm.name == "vm1");
    CHECK(vm.disks.at(0).size == MiB);
    CHECK(vm.nics.at(0).addresses == std::vector<std::string>{"10.1.0.10/24"});
    CHECK(vm.values.at("memory") == "256M");

    VmFile file;
    file.name = "vm1";
    file.hypervisor = "qemu";
    file.nics = vm.nics;
    file.values = vm.values;
    file.local = {{"qmp", "/run/q"}};
    CHECK(describe(file, vm.disks) == good());
}

TEST_CASE("whatever does not fit this site's limits and patterns is refused, with the setting") {
    CHECK(refused("/name", "../vm") == "'../vm' is no name of a VM");
    CHECK(refused("/name", "\x1b[2J") == "'?[2J' is no name of a VM");
    CHECK(refused("/hypervisor", "exec")
              .starts_with("this version does not know the hypervisor 'exec'"));
    CHECK(refused("/disks", Json::array()) == "the VM has no disk");
    CHECK(
        refused("/disks", Json::array({1})).starts_with("parameter 'disks': an array of objects"));
    CHECK(refused("/disks/0/name", "a/b") == "'a/b' is no name of a disk");
    CHECK(refused("/disks/0/name", "journal") == "'journal' is no name of a disk");
    CHECK(refused("/disks/0/size", 2 * GiB) ==
          "disk root has 2.0 GiB: limits.disk-size of drover.toml allows 1.0 GiB");
    CHECK(refused("/disks/0/size", 0U).starts_with("disk root has 0 B"));
    CHECK(refused("/disks/0/size", -1).starts_with("parameter 'size'"));
    CHECK(refused("/disks/0/block_size", 5000U).starts_with("disk root: a block size of 5000"));
    CHECK(refused("/disks/0/uuid", "x").starts_with("disk root: 'x' is no UUID"));
    CHECK(refused("/disks/0/file", "/etc/passwd") == "unknown parameter 'file'");
    CHECK(refused("/disks/1", good()["disks"][0]) == "two disks are called 'root'");
    CHECK(refused("/nics/0/bridge", "br1") ==
          "the VM wants the bridge 'br1': 'bridges' of drover.toml does not allow it");
    CHECK(refused("/nics/0/mac", "02:00:00:00:00:10,script=x")
              .ends_with("is no Ethernet address of a card"));
    CHECK(refused("/nics/0/addresses", Json::array({"10.1.0.10;reboot"}))
              .starts_with("NIC 02:00:00:00:00:10: addresses"));
    CHECK(refused("/nics/1", good()["nics"][0]) ==
          "the VM has 2 nics: limits.nics of drover.toml allows 1");
    CHECK(refused("/values/memory", "256M,share=on")
              .starts_with("'memory' of the VM does not match"));
    CHECK(refused("/values/memory", 256).starts_with("'memory' of the VM does not match"));
    CHECK(refused("/values/memory", "2G") ==
          "the VM has 2G of memory: limits.memory of drover.toml allows 1.0 GiB");
    CHECK(
        refused("/values/command", "x")
            .starts_with("the VM has a value 'command': [hypervisor.qemu.values] of drover.toml"));
    CHECK(refused("/values", Json::object()) == "[hypervisor.qemu] of drover.toml: the command "
                                                "asks for 'memory': the VM file does not say it");
    CHECK(refused("/command", "x") == "unknown parameter 'command'");
    CHECK_THROWS_WITH_AS(check_description(SiteConfig{}, good(), false),
                         doctest::Contains("has no [hypervisor.qemu]"),
                         Error);
}

static std::string refusal_of(const SiteConfig& site, const Json& vm) {
    try {
        check_description(site, vm, false);
    } catch (const Error& error) {
        return error.what();
    }
    return "not refused";
}

TEST_CASE("a tunnel is for sites that have a port for it, and for the networks that they allow") {
    SiteConfig site = site_with_qemu();
    Json vm = good();
    const auto refusal = [&] { return refusal_of(site, vm); };
    vm["tunnel"] = true;
    CHECK(refusal() ==
          "the VM wants to keep its addresses by a tunnel: drover.toml has no [tunnel]");
    site.tunnel.port = "tap{nic.index}";
    CHECK(check_description(site, vm, false).tunnel);
    CHECK(tunnel_port(site, check_description(site, vm, false), 0) == "tap0");
    site.tunnel.port = "{vm}/{nic.bridge}";
    CHECK(refusal() ==
          "tunnel.port of drover.toml makes 'vm1/br0', which is no name of an interface");
    site.tunnel = {"tap0", {"10.1.0.0/16"}};
    CHECK(refusal() == "not refused");
    vm["nics"][0]["addresses"].push_back("2001:db8::10/64");
    CHECK(refusal() == "the VM wants to keep 2001:db8::10/64: tunnel.networks of drover.toml does "
                       "not allow it");
    site.limits.addresses = 1;
    CHECK(refusal().find("limits.addresses of drover.toml allows 1") != std::string::npos);
    vm["nics"][0]["gateways"] = Json::array({"fe80::1%eth0"});
    CHECK(refusal() == "NIC 02:00:00:00:00:10: addresses of gateways are expected");
    vm["tunnel"] = 1;
    vm["nics"][0].erase("gateways");
    CHECK(refusal().find("'tunnel'") != std::string::npos);
}

TEST_CASE("a VM stays in its segment only where the site says so, for the networks it says") {
    SiteConfig site = site_with_qemu();
    Json vm = good();
    const auto refusal = [&] { return refusal_of(site, vm); };
    vm["stretched"] = true;
    CHECK(refusal() == "the VM is to stay in its segment: drover.toml has no [stretched]");
    site.stretched.allowed = true;
    CHECK(check_description(site, vm, false).stretched);
    site.stretched.networks = {"10.2.0.0/16"};
    CHECK(refusal().find(": stretched.networks of drover.toml does not allow it") !=
          std::string::npos);
    site.stretched.networks.clear();
    site.hypervisors["qemu"].nic_arguments.clear(); // which may want it too
    vm["nics"][0].erase("bridge");
    CHECK(refusal().find("has no bridge") != std::string::npos);
    vm = good();
    vm["stretched"] = vm["tunnel"] = true;
    site.tunnel.port = "tap0";
    CHECK(refusal() == "the VM wants a tunnel, and to stay in its segment");
    vm["stretched"] = "yes";
    CHECK(refusal().find("'stretched'") != std::string::npos);
}

TEST_CASE("for disks alone no template is needed, and the rest is not looked at") {
    CHECK(refused("/nics/0/bridge", "br1", true) == "not refused");
    CHECK(check_description(SiteConfig{}, good(), true).values.empty());
    CHECK(refused("/disks/0/size", 2 * GiB, true).starts_with("disk root has 2.0 GiB"));
}

TEST_CASE("a template gives one word for each of its words, whatever a value holds") {
    const SiteConfig site = site_with_qemu();
    CommandValues values;
    values.vm = "vm1";
    values.qmp = "/run/a b.sock";
    values.disks = {{"root", "/r.sock"}, {"data", "/d.sock"}};
    values.nics = {{"02:00:00:00:00:10", "br0", {}}, {"02:00:00:00:00:11", "br1", {}}};
    values.values = {{"memory", "{vm} -x"}}; // not expanded again
    const std::vector<std::string> expected{"qemu",
                                            "-m",
                                            "{vm} -x",
                                            "-qmp",
                                            "unix:/run/a b.sock",
                                            "-drive",
                                            "0:/r.sock",
                                            "-drive",
                                            "1:/d.sock",
                                            "-boot",
                                            "root",
                                            "-nic",
                                            "02:00:00:00:00:10,br0,vm1",
                                            "-nic",
                                            "02:00:00:00:00:11,br1,vm1",
                                            "{x}"};
    CHECK(expand_command(site.hypervisors.at("qemu"), values) == expected);

    values.nics[1].bridge.clear();
    CHECK_THROWS_WITH_AS(expand_command(site.hypervisors.at("qemu"), values),
                         doctest::Contains("bridge of NIC 02:00:00:00:00:11"),
                         Error);
    values.disks.clear();
    CHECK_THROWS_WITH_AS(expand_command(site.hypervisors.at("qemu"), values),
                         doctest::Contains("disk 0, counted from 0: the VM has 0"),
                         Error);
}

TEST_CASE("groups without a place of their own come last") {
    HypervisorTemplate hypervisor;
    hypervisor.command = {"q", "-S"};
    hypervisor.disk_arguments = {"d{disk.index}"};
    hypervisor.nic_arguments = {"n{nic.index}"};
    CommandValues values;
    values.disks = {{"a", "s"}};
    values.nics = {{"02:00:00:00:00:10", "", {}}};
    CHECK(expand_command(hypervisor, values) == std::vector<std::string>{"q", "-S", "d0", "n0"});
}

TEST_CASE("what is wrong with a template") {
    const std::map<std::string, std::string> values{{"memory", ".*"}};
    const auto command = [&](const char* word) {
        return template_error({word}, TemplateGroup::command, values).value_or("right");
    };
    CHECK(command("{memory}") == "right");
    CHECK(command("{disk.12.socket}{nic.0.bridge}{vm}{qmp}") == "right");
    CHECK(command("{disk.socket}").starts_with("'{disk.socket}' is no placeholder here"));
    CHECK(command("{disk.0.size}").starts_with("'{disk.0.size}' is no placeholder"));
    CHECK(command("{disk..name}").starts_with("'{disk..name}' is no placeholder"));
    CHECK(command("{}").starts_with("'{}' is no placeholder"));
    CHECK(command("a{b") == "\"a{b\": '{' without '}': write '{{' for a brace");
    CHECK(command("a}b") == "\"a}b\": a single '}': write '}}' for a brace");
    CHECK(template_error({"{disks}", "{disks}"}, TemplateGroup::command, values) ==
          "\"{disks}\" may be there once");
    CHECK(template_error({"{disk.index}{disk.name}"}, TemplateGroup::disk, values) == std::nullopt);
    CHECK(template_error({"{nic.index}"}, TemplateGroup::disk, values) != std::nullopt);
    CHECK(template_error({"{disks}"}, TemplateGroup::disk, values) != std::nullopt);
}

TEST_CASE("a VM of Xen is described by values alone, all of them within this site's limits") {
    const auto refused_by =
        [](const std::string& settings, const char* pointer, const Json& value) {
            const SiteConfig site = parse_site_config(settings, "drover.toml");
            Json vm = good();
            vm["hypervisor"] = "xen";
            vm["nics"] = Json::array();
            vm["values"] = {{"type", "pvh"},
                            {"memory", "98304K"},
                            {"max-memory", "98304K"},
                            {"cpus", "1"},
                            {"uuid", "01234567-89ab-cdef-0123-456789abcdef"},
                            {"vdevs", "xvda"}};
            if (pointer != nullptr) {
                vm[Json::json_pointer(pointer)] = value;
            }
            try {
                check_description(site, vm, false);
            } catch (const Error& error) {
                return std::string(error.what());
            }
            return std::string();
        };
    const std::string allowed = "[limits]\nmemory = \"1G\"\n[hypervisor.xen]\n";
    CHECK(refused_by(allowed, nullptr, Json()).empty());
    CHECK(refused_by("", nullptr, Json()).find("no [hypervisor.xen]") != std::string::npos);
    CHECK(refused_by(allowed + "types = [\"pv\"]", nullptr, Json()).find("'type'") == 0);
    CHECK(refused_by(allowed, "/values/type", "hvm").find("'type'") == 0);
    CHECK(refused_by(allowed, "/values/max-memory", "2G").find("2G of memory") !=
          std::string::npos);
    CHECK(refused_by(allowed, "/values/uuid", "").find("'uuid'") == 0);
    CHECK(refused_by(allowed, "/values/vdevs", "xvda,xvdb").find("'vdevs'") == 0);
    CHECK(refused_by(allowed, "/values/vdevs", "xvda;x").find("'vdevs'") == 0);
    CHECK(refused_by(allowed, "/values/kernel", "/boot/x").find("does not know it") !=
          std::string::npos);
    CHECK(refused_by(allowed, "/values", Json::object()).find("has no value") != std::string::npos);
}
