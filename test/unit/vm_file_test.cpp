// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/vm_file.h"

#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

#include <unistd.h>

using namespace drover;

namespace {

constexpr const char* minimal =
    "name = \"vm1\"\nhypervisor = \"none\"\n[[disk]]\nname = \"root\"\nfile = \"/img\"\n";

VmFile parse(const std::string& text, HostCheck check = HostCheck::may_be_missing) {
    return parse_vm_file(SiteConfig{}, text, "vm1.toml", check);
}

std::string refused(const std::string& text, HostCheck check = HostCheck::may_be_missing) {
    try {
        parse(text, check);
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::usage);
        return error.what();
    }
    return "not refused";
}

std::string with_disk(const std::string& lines) {
    return "name = \"vm1\"\nhypervisor = \"none\"\n[[disk]]\n" + lines;
}

} // namespace

TEST_CASE("the example VM file parses") {
    const VmFile vm =
        load_vm_file(SiteConfig{}, DROVER_SOURCE "/conf/vm1.toml", HostCheck::may_be_missing);
    CHECK(vm.name == "vm1");
    CHECK(vm.hypervisor == "qemu");
    REQUIRE(vm.disks.size() == 1);
    CHECK(vm.disks[0].name == "root");
    CHECK(vm.disks[0].store.file == "/var/lib/drover/images/vm1.img");
    CHECK(vm.disks[0].store.uri.empty());
    REQUIRE(vm.nics.size() == 1);
    CHECK(vm.nics[0].mac == "02:00:00:00:00:10");
    CHECK(vm.nics[0].bridge == "br0");
    CHECK(vm.nics[0].addresses == std::vector<std::string>{"10.1.0.10/24"});
    CHECK(vm.values == std::map<std::string, std::string>{{"cpus", "1"}, {"memory", "256M"}});
    CHECK(vm.local.at("qmp") == "/run/vm1.qmp");
    CHECK(vm.hooks.pre_check.empty());
}

TEST_CASE("to_toml gives a text that reads back to the same") {
    VmFile vm;
    vm.name = "web.1";
    vm.hypervisor = "qemu";
    vm.disks = {{"root", {"/dir with \"quotes\" and \\/img", ""}}, {"data", {"", "nbd://h:1/x"}}};
    vm.nics = {{"02:00:00:00:00:10",
                "br0",
                {"10.1.0.10/24", "2001:db8::10/64"},
                {"fe80::1"},
                {"fe80::77"},
                "br-here"},
               {"02:00:00:00:00:11", "", {}}};
    vm.network = {NetworkSpec::Mode::tunnel, "12h", "10m"};
    vm.values = {{"memory", "2G"}, {"cpus", "4"}};
    vm.local = {{"qmp", "/run/q"}};
    vm.hooks.pre_check = {"true"};
    vm.hooks.failed = {"/bin/sh", "-c", "echo 'line'\n\techo \"two\""};
    const VmFile back = parse(to_toml(vm));
    CHECK(to_toml(back) == to_toml(vm));
    CHECK(back.disks[0].store.file == vm.disks[0].store.file);
    CHECK(back.disks[1].store.uri == vm.disks[1].store.uri);
    CHECK(back.nics[0].addresses == vm.nics[0].addresses);
    CHECK(back.nics[0].gateways == vm.nics[0].gateways);
    CHECK(back.nics[0].link_locals == vm.nics[0].link_locals);
    CHECK(back.nics[0].home_bridge == "br-here");
    CHECK(back.network.mode == NetworkSpec::Mode::tunnel);
    CHECK(back.network.keep == "12h");
    CHECK(back.network.keep_at_least == "10m");
    CHECK(back.values == vm.values);
    CHECK(back.local == vm.local);
    CHECK(back.hooks.failed == vm.hooks.failed);
    CHECK(back.hooks.post_switchover.empty());
}

TEST_CASE("a tunnel needs a VM that moves, an address and a bridge here") {
    const auto with = [](const char* hypervisor, const char* nic, const char* network) {
        return refused(
            fmt::format("name = \"vm1\"\nhypervisor = \"{}\"\n[[disk]]\nname = \"root\"\n"
                        "file = \"/img\"\n[[nic]]\nmac = \"02:00:00:00:00:10\"\n{}\n"
                        "[network]\n{}\n",
                        hypervisor,
                        nic,
                        network));
    };
    constexpr const char* nic = "bridge = \"br0\"\naddresses = [\"10.1.0.10/24\"]";
    constexpr const char* tunnel = "mode = \"tunnel\"";
    CHECK(with("qemu", nic, tunnel) == "not refused");
    CHECK(with("none", nic, "mode = \"none\"") == "not refused");
    CHECK(with("none", nic, tunnel).find("its VM does not move") != std::string::npos);
    CHECK(with("qemu", "bridge = \"br0\"", tunnel).ends_with("needs a [[nic]] with 'addresses'"));
    CHECK(with("qemu", "addresses = [\"10.1.0.10/24\"]", tunnel).find("'home-bridge'") !=
          std::string::npos);
    CHECK(with("qemu", nic, "mode = \"routed\"")
              .ends_with("\"auto\", \"tunnel\", \"stretched\" or \"none\" is expected, not "
                         "\"routed\""));
    CHECK(with("qemu", nic, "mode = true").find("'network.mode'") != std::string::npos);
    for (const char* mode : {"mode = \"auto\"", "mode = \"stretched\""}) {
        CHECK(with("qemu", nic, mode) == "not refused");
        CHECK(with("none", nic, mode).find("its VM does not move") != std::string::npos);
        CHECK(with("qemu", "bridge = \"br0\"", mode).ends_with("needs a [[nic]] with 'addresses'"));
        CHECK(with("qemu", "home-bridge = \"br0\"\naddresses = [\"10.1.0.10/24\"]", mode)
                  .ends_with("that NIC 02:00:00:00:00:10 is attached to: its 'bridge'"));
    }
    CHECK(with("qemu", nic, "keep = \"soon\"").find("'network.keep'") != std::string::npos);
    CHECK(with("qemu", nic, "keep-at-least = \"forever\"").find("'network.keep-at-least'") !=
          std::string::npos);
    CHECK(with("qemu", nic, "anchor = \"h\"").find("unknown key") != std::string::npos);
    CHECK(with("qemu", "gateways = [\"fe80::1/64\"]", "").find("'nic[0].gateways'") !=
          std::string::npos);
    CHECK(with("qemu", "home-bridge = \"a/b\"", "").find("'nic[0].home-bridge'") !=
          std::string::npos);
}

TEST_CASE("DNS: names, server, key, and where the new addresses come from") {
    const auto text = [](const std::string& lines, const std::string& rest) {
        return fmt::format("{}[network.dns]\n{}\n{}", minimal, lines, rest);
    };
    const std::string whole = "names = [\"VM1.example.org\", \"www.example.org.\"]\n"
                              "server = \"10.1.0.53\"\nkey-file = \"/key\"\n";
    const std::string table = "[network.dns.address]\nb = [\"10.2.0.10\", \"2001:DB8::10\"]\n";
    const VmFile vm = parse(text(whole, table));
    REQUIRE(vm.network.dns);
    CHECK(vm.network.mode == NetworkSpec::Mode::none);
    CHECK(vm.network.dns->names ==
          std::vector<std::string>{"vm1.example.org.", "www.example.org."});
    CHECK(vm.network.dns->server == "10.1.0.53");
    CHECK(vm.network.dns->port == 53);
    CHECK(vm.network.dns->ttl == 60);
    CHECK(vm.network.dns->ptr);
    CHECK(vm.network.dns->addresses.at("b") ==
          std::vector<std::string>{"10.2.0.10", "2001:db8::10"});
    CHECK(to_toml(parse(to_toml(vm))) == to_toml(vm));
    const VmFile hook = parse(text(whole + "address-hook = [\"h\"]\nttl = 5\nptr = false", ""));
    CHECK(hook.network.dns->address_hook == std::vector<std::string>{"h"});
    CHECK(!hook.network.dns->ptr);
    CHECK(to_toml(parse(to_toml(hook))) == to_toml(hook));

    const auto with_server = [&](const std::string& server) {
        return text(fmt::format("names = [\"a.b\"]\nkey-file = \"/key\"\nserver = \"{}\"", server),
                    table);
    };
    const VmFile v6 = parse(with_server("[2001:db8::53]:5353"));
    CHECK(v6.network.dns->server == "2001:db8::53");
    CHECK(v6.network.dns->port == 5353);
    CHECK(to_toml(parse(to_toml(v6))) == to_toml(v6));
    CHECK(parse(with_server("2001:db8::53")).network.dns->port == 53);
    CHECK(parse(with_server("10.1.0.53:54")).network.dns->port == 54);
    for (const char* bad : {"ns.example.org", "10.1.0.53:0", "10.1.0.53:65536", "[::1]", ":53"}) {
        CHECK(refused(with_server(bad)).find("'network.dns.server': an address") !=
              std::string::npos);
    }
    CHECK(refused(text("", "")).find("'network.dns.names'") != std::string::npos);
    CHECK(refused(text(whole, "")).find("either the VM's addresses at each HOST") !=
          std::string::npos);
    CHECK(refused(text(whole + "address-hook = [\"h\"]", table)).find("either the VM's") !=
          std::string::npos);
    CHECK(refused(text(whole, "[network.dns.address]\nb = [\"10.2.0.10/24\"]")) ==
          "vm1.toml:12: 'network.dns.address.b': addresses such as \"10.2.0.10\", without the "
          "length of a prefix, are expected, not \"10.2.0.10/24\"");
    CHECK(refused(text(whole + "zone = \"x\"", table)).find("unknown key") != std::string::npos);
    CHECK(refused(text(whole + "ttl = 0", table)).find("'network.dns.ttl'") != std::string::npos);
    CHECK(refused(text(whole + "ptr = 1", table)).find("true or false") != std::string::npos);
    CHECK(refused(text(whole, table), HostCheck::must_exist).find("'disk[0].file'") !=
          std::string::npos);
}

TEST_CASE("a mistake is told with file, line, key and what was expected") {
    CHECK(refused("hypervisor = \"qemu\"") ==
          "vm1.toml:1: 'name': is missing: the VM's name is expected");
    CHECK(refused("\nname = \"../x\"").starts_with("vm1.toml:2: 'name': letters, digits"));
    CHECK(refused("name = \"vm1\"\nhypervisor = \"vmware\"") ==
          "vm1.toml:2: 'hypervisor': \"qemu\", \"xen\" or \"none\" is expected, not \"vmware\"");
    CHECK(refused("name = \"vm1\"\nhypervisor = \"none\"") ==
          "vm1.toml:1: 'disk': is missing: at least one [[disk]] is expected");
    CHECK(refused("name = \"vm1\"\nhypervisor = \"none\"\ndisk = \"/img\"") ==
          "vm1.toml:3: 'disk': one or more tables are expected, each under its own [[disk]]");
    CHECK(refused(std::string(minimal) + "filename = \"x\"") ==
          "vm1.toml:6: 'disk[0].filename': unknown key; known here: file, name, uri");
    CHECK(refused(with_disk("name = \"root\"")) ==
          "vm1.toml:3: 'disk[0].file': is missing: the path of a raw image or a block device, or "
          "'uri' is expected");
    CHECK(refused(with_disk("name = \"root\"\nfile = \"img\"")) ==
          "vm1.toml:5: 'disk[0].file': an absolute path is expected, not \"img\"");
    CHECK(refused(with_disk("name = \"root\"\nfile = \"/img\"\nuri = \"nbd://x\"")) ==
          "vm1.toml:6: 'disk[0].uri': either 'file' or 'uri' is expected, not both");
    CHECK(refused(with_disk("name = \"root\"\nuri = \"http://x\""))
              .starts_with("vm1.toml:5: 'disk[0].uri': an NBD URI"));
    CHECK(refused(with_disk("name = \"root\"\nfile = 3")) ==
          "vm1.toml:5: 'disk[0].file': a string is expected, not a number");
    CHECK(
        refused(with_disk("name = \"a\"\nfile = \"/x\"\n[[disk]]\nname = \"a\"\nfile = \"/y\"")) ==
        "vm1.toml:7: 'disk[1].name': \"a\" is there twice");
    CHECK(
        refused(with_disk("name = \"a\"\nfile = \"/x\"\n[[disk]]\nname = \"b\"\nfile = \"/x\"")) ==
        "vm1.toml:8: 'disk[1].file': \"/x\" is there twice");
    CHECK(refused(std::string(minimal) + "[[nic]]\nmac = \"x\"")
              .starts_with("vm1.toml:7: 'nic[0].mac': an Ethernet address"));
    CHECK(refused(std::string(minimal) +
                  "[[nic]]\nmac = \"02:00:00:00:00:10\"\naddresses = [\"10.1.0.10\"]")
              .starts_with("vm1.toml:8: 'nic[0].addresses': addresses with a prefix length"));
    CHECK(refused(std::string(minimal) + "[qemu]\nmemory = \"1G\"") ==
          "vm1.toml:6: 'qemu': is not for hypervisor \"none\"");
    CHECK(refused(std::string(minimal) + "[hooks]\npre_check = [\"x\"]")
              .starts_with("vm1.toml:7: 'hooks.pre_check': unknown key; known here: failed, "));
    CHECK(refused(std::string(minimal) + "[hooks]\npre-check = []")
              .starts_with("vm1.toml:7: 'hooks.pre-check': an array"));
    CHECK(refused(std::string(minimal) + "[hooks]\npre-check = \"x\"") ==
          "vm1.toml:7: 'hooks.pre-check': an array of strings is expected, not a string");
}

TEST_CASE("a MAC address is read in either case") {
    CHECK(parse(std::string(minimal) + "[[nic]]\nmac = \"02:AB:00:00:00:cD\"").nics.at(0).mac ==
          "02:ab:00:00:00:cd");
}

TEST_CASE("qemu's values are those that the site declares, and match their patterns") {
    std::string text = minimal;
    text.replace(text.find("none"), 4, "qemu");
    CHECK(refused(text + "[qemu]\nmemory = \"256\"") ==
          "vm1.toml:7: 'qemu.memory': a value that matches [1-9][0-9]{0,8}[KMGT] is expected, not "
          "\"256\"");
    CHECK(refused(text + "[qemu]\nmemroy = \"1G\"")
              .starts_with("vm1.toml:7: 'qemu.memroy': unknown key; known here: qmp, cpus, memory; "
                           "more can be declared in"));
    CHECK(refused(text + "[qemu]\ncpus = true") ==
          "vm1.toml:7: 'qemu.cpus': a string or a number is expected, not true or false");
    CHECK(refused(text + "[qemu]\nqmp = \"q\"")
              .starts_with("vm1.toml:7: 'qemu.qmp': the absolute path"));
    SiteConfig site;
    site.hypervisors["qemu"].values = {{"profile", "small|large"}};
    const VmFile vm = parse_vm_file(
        site, text + "[qemu]\nprofile = \"small\"", "vm1.toml", HostCheck::may_be_missing);
    CHECK(vm.values.at("profile") == "small");
}

TEST_CASE("images and hooks that are not there are told, unless the image is only set aside") {
    std::string directory =
        (std::filesystem::temp_directory_path() / "drover-vm-file-XXXXXX").string();
    REQUIRE(::mkdtemp(directory.data()) != nullptr);
    const std::string image = directory + "/disk.img";
    const std::string text = with_disk(fmt::format("name = \"root\"\nfile = \"{}\"\n", image));
    CHECK(refused(text, HostCheck::must_exist) ==
          fmt::format("vm1.toml:5: 'disk[0].file': a raw image or a block device is expected at "
                      "{}: No such file or directory",
                      image));
    CHECK(refused(with_disk(fmt::format("name = \"root\"\nfile = \"{}\"\n", directory)),
                  HostCheck::must_exist)
              .ends_with("is neither"));
    std::ofstream(image + ".fenced-3").put('x');
    CHECK(parse(text, HostCheck::must_exist).name == "vm1");
    std::ofstream(image).put('x');
    CHECK(parse(text, HostCheck::must_exist).name == "vm1");
    CHECK(refused(text + "[hooks]\nfailed = [\"/nonexistent/hook\"]", HostCheck::must_exist)
              .starts_with("vm1.toml:7: 'hooks.failed': an executable program is expected at "
                           "/nonexistent/hook"));
    std::filesystem::remove_all(directory);
}

TEST_CASE("what is neither a name nor a path is refused; a file that is not there, too") {
    CHECK_THROWS_WITH_AS(load_vm_file(SiteConfig{}, "-x", HostCheck::may_be_missing),
                         doctest::Contains("neither the name"),
                         Error);
    CHECK_THROWS_WITH_AS(
        load_vm_file(SiteConfig{}, "/nonexistent/vm.toml", HostCheck::may_be_missing),
        doctest::Contains("No such file"),
        Error);
    CHECK_THROWS_WITH_AS(
        load_vm_file(SiteConfig{}, "drover-test-no-such-vm", HostCheck::may_be_missing),
        doctest::Contains("no VM 'drover-test-no-such-vm'"),
        Error);
}

TEST_CASE("an xl configuration lies beside the VM file, unless its path is absolute") {
    const auto read = [](const std::string& xen) {
        return parse_vm_file(SiteConfig(),
                             "name = \"vm1\"\nhypervisor = \"xen\"\n[[disk]]\nname = \"root\"\n"
                             "file = \"/img\"\n[xen]\n" +
                                 xen,
                             "/etc/drover/vm.d/vm1.toml",
                             HostCheck::may_be_missing);
    };
    CHECK(read("").local.empty());
    CHECK(read("config = \"vm1.cfg\"").local.at("config") == "/etc/drover/vm.d/vm1.cfg");
    CHECK(read("config = \"/etc/xen/vm1.cfg\"").local.at("config") == "/etc/xen/vm1.cfg");
    CHECK_THROWS_AS(read("config = \"\""), Error);
    CHECK_THROWS_AS(read("memory = \"96M\""), Error);
}
