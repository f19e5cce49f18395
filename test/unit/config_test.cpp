// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/config.h"

#include <doctest/doctest.h>

using namespace drover;

namespace {

SiteConfig parse(const std::string& text) {
    return parse_site_config(text, "drover.toml");
}

// The message that a text is refused with.
std::string refused(const std::string& text) {
    try {
        parse(text);
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::usage);
        return error.what();
    }
    return "not refused";
}

} // namespace

TEST_CASE("the example drover.toml says the defaults, and parses") {
    const SiteConfig site = load_site_config(DROVER_SOURCE "/conf/drover.toml");
    const SiteConfig defaults;
    CHECK(site.images == defaults.images);
    CHECK(site.agent_writes.empty());
    CHECK(site.listen == defaults.listen);
    CHECK(site.ports.first == defaults.ports.first);
    CHECK(site.ports.last == defaults.ports.last);
    CHECK(site.socket_mode == defaults.socket_mode);
    CHECK(site.bridges == std::vector<std::string>{"br0"});
    CHECK(site.limits.disk_size == defaults.limits.disk_size);
    CHECK(site.limits.memory == defaults.limits.memory);
    CHECK(site.timeouts.handover == defaults.timeouts.handover);
    REQUIRE(site.hypervisors.contains("qemu"));
    CHECK(site.hypervisors.at("qemu").command.at(0) == "qemu-system-x86_64");
    CHECK(site.hypervisors.at("qemu").values == value_patterns(defaults, "qemu"));
}

TEST_CASE("an empty drover.toml gives the defaults") {
    const SiteConfig site = parse("");
    CHECK(site.images == "/var/lib/drover/images");
    CHECK(site.hypervisors.empty());
}

TEST_CASE("every key is read") {
    const SiteConfig site = parse(R"(
        images = "/srv"
        agent-writes = ["/srv/logs", "/mnt"]
        listen = "10.2.0.2"
        ports = "4000-4003"
        bridges = ["br-a", "br1"]
        socket-group = "kvm"
        [limits]
        disks = 2
        disk-size = "1T"
        nics = 0
        memory = 1048576
        addresses = 3
        [tunnel]
        port = "tap{nic.index}"
        networks = ["10.1.0.0/16", "2001:db8::/32"]
        [timeouts]
        connect = 1
        start = 2
        stop = 3
        handover = 4
        hook = 5
        [hypervisor.qemu]
        command = ["qemu", "{vm}", "{profile}"]
        [hypervisor.qemu.values]
        profile = "small|large"
    )");
    CHECK(site.images == "/srv");
    CHECK(site.agent_writes == std::vector<std::string>{"/srv/logs", "/mnt"});
    CHECK(site.listen == "10.2.0.2");
    CHECK(site.ports.first == 4000);
    CHECK(site.ports.last == 4003);
    CHECK(site.bridges == std::vector<std::string>{"br-a", "br1"});
    CHECK(site.socket_group == "kvm");
    CHECK(site.socket_mode == 0660); // a group that is named may connect
    CHECK(site.limits.disks == 2);
    CHECK(site.limits.disk_size == TiB);
    CHECK(site.limits.nics == 0);
    CHECK(site.limits.memory == MiB);
    CHECK(site.limits.addresses == 3);
    CHECK(site.tunnel.port == "tap{nic.index}");
    CHECK(site.tunnel.networks == std::vector<std::string>{"10.1.0.0/16", "2001:db8::/32"});
    CHECK(site.timeouts.connect.count() == 1);
    CHECK(site.timeouts.start.count() == 2);
    CHECK(site.timeouts.stop.count() == 3);
    CHECK(site.timeouts.handover.count() == 4);
    CHECK(site.timeouts.hook.count() == 5);
    const auto patterns = value_patterns(site, "qemu");
    CHECK(patterns.at("profile") == "small|large");
    CHECK(patterns.contains("memory"));
}

TEST_CASE("a mistake is told with file, line, key and what was expected") {
    CHECK(refused("agent-writes = [\"logs\"]") ==
          "drover.toml:1: 'agent-writes': absolute paths of folders are expected, not \"logs\"");
    CHECK(refused("agent-writes = \"/srv\"") ==
          "drover.toml:1: 'agent-writes': an array of strings is expected, not a string");
    CHECK(refused("\n\nimage = \"/srv\"\n") ==
          "drover.toml:3: 'image': unknown key; known here: "
          "agent-writes, bridges, hypervisor, images, limits, listen, "
          "ports, socket-group, socket-mode, stretched, timeouts, tunnel");
    CHECK(refused("images = 3") == "drover.toml:1: 'images': a string is expected, not a number");
    CHECK(refused("images = \"srv\"") ==
          "drover.toml:1: 'images': an absolute path is expected, not \"srv\"");
    CHECK(refused("[limits]\n\ndisks = 0") ==
          "drover.toml:3: 'limits.disks': a number from 1 to 256 is expected, not 0");
    CHECK(refused("[limits]\ndisk-size = \"much\"")
              .starts_with("drover.toml:2: 'limits.disk-size': a size is expected"));
    CHECK(refused("[timeouts]\nconnect = -1")
              .starts_with("drover.toml:2: 'timeouts.connect': a number from 1"));
    CHECK(refused("[timeouts]\nfoo = 1")
              .starts_with("drover.toml:2: 'timeouts.foo': unknown key; known here: connect,"));
    CHECK(refused("bridges = [\"br0\",\n \"../x\"]")
              .starts_with("drover.toml:1: 'bridges': names of bridges"));
    CHECK(refused("bridges = [1]") ==
          "drover.toml:1: 'bridges': an array of strings is expected, element 0 is a number");
    CHECK(
        refused("[tunnel]\nnetworks = []").starts_with("drover.toml:1: 'tunnel.port': is missing"));
    CHECK(refused("[tunnel]\nport = \"tap{disk.index}\"")
              .starts_with("drover.toml:2: 'tunnel.port': '{disk.index}' is no placeholder here"));
    CHECK(refused("[tunnel]\nport = \"t\"\nnetworks = [\"10.1.0.0\"]")
              .starts_with("drover.toml:3: 'tunnel.networks': networks such as"));
    CHECK(refused("[stretched]\nnetworks = [\"10.1.0.0\"]")
              .starts_with("drover.toml:2: 'stretched.networks': networks such as"));
    CHECK(refused("[stretched]\nbridge = \"br0\"").find("unknown key") != std::string::npos);
    CHECK(parse_site_config("[stretched]", "drover.toml").stretched.allowed);
    CHECK_FALSE(parse_site_config("", "drover.toml").stretched.allowed);
    CHECK(refused("limits = 1") == "drover.toml:1: 'limits': a table is expected, not a number");
    CHECK(refused("[hypervisor.xyz]\ncommand = [\"a\"]")
              .starts_with("drover.toml:1: 'hypervisor.xyz': unknown key"));
    CHECK(refused("images = \"/a\"\nimages = \"/b\"").starts_with("drover.toml:2: not TOML: "));
    CHECK(refused("x = [").starts_with("drover.toml:1: not TOML: "));
    CHECK(refused("# \u00e9\nimages = \"/\u00e9\"\n\u00e9 = 1")
              .starts_with("drover.toml:3: not TOML: "));
    CHECK(refused("images = \"/a\" \u00e9").starts_with("drover.toml:1: not TOML: "));
    CHECK(refused("images = \"\"\"/a\\\n\u00e9\"\"\"").starts_with("drover.toml:2: not TOML: "));
    CHECK(refused("images = '''/a\n'\u00e9'''").starts_with("drover.toml:2: not TOML: "));
    CHECK(parse_site_config("images = '/\"\u00e9' # \u00e9", "f").images == "/\"\u00e9");
    CHECK(parse_site_config("images = \"/\\\"\u00e9#\" # \u00e9", "f").images == "/\"\u00e9#");
}

TEST_CASE("addresses, ports and modes are checked") {
    for (const char* text : {"10", "10809-", "-5", "0-5", "9-8", "1-65536", "a-b", "1-2-3"}) {
        const std::string line = fmt::format("ports = \"{}\"", text);
        if (std::string_view(text) == "10") {
            CHECK(parse(line).ports.last == 10); // one port
        } else {
            CHECK_MESSAGE(refused(line).starts_with("drover.toml:1: 'ports': a range"), text);
        }
    }
    for (const char* text : {"0666", "0400", "1700", "x", "", "0660x"}) {
        CHECK_MESSAGE(refused(fmt::format("socket-mode = \"{}\"", text))
                          .starts_with("drover.toml:1: 'socket-mode': an octal"),
                      text);
    }
    CHECK(refused("listen = \"localhost\"").starts_with("drover.toml:1: 'listen': an IP address"));
    CHECK(parse("listen = \"::1\"").listen == "::1");
}

TEST_CASE("a template with a placeholder that nobody can fill is refused when it is read") {
    CHECK(refused("[hypervisor.qemu]\ncommand = [\"qemu\", \"{memroy}\"]") ==
          "drover.toml:2: 'hypervisor.qemu.command': '{memroy}' is no placeholder here: see "
          "PLACEHOLDERS in "
          "drover.toml(5)");
    CHECK(refused("[hypervisor.qemu]\ncommand = []")
              .starts_with("drover.toml:2: 'hypervisor.qemu.command': an array"));
    CHECK(refused("[hypervisor.qemu]\n")
              .starts_with("drover.toml:1: 'hypervisor.qemu.command': an array"));
    CHECK(refused("[hypervisor.qemu]\ncommand = [\"q\"]\n[hypervisor.qemu.values]\nx = \"(\"")
              .starts_with(
                  "drover.toml:4: 'hypervisor.qemu.values.x': a regular expression is expected"));
    CHECK(refused("[hypervisor.qemu]\ncommand = [\"q\"]\n[hypervisor.qemu.values]\nx = "
                  "\"[0-9]{6666666}\"")
              .starts_with("drover.toml:4: 'hypervisor.qemu.values.x': a pattern without numbers"));
    CHECK(refused("[hypervisor.qemu]\ncommand = [\"q\"]\n[hypervisor.qemu.values]\nqmp = \".*\"")
              .starts_with("drover.toml:4: 'hypervisor.qemu.values.qmp': a name of"));
    CHECK(refused("[hypervisor.qemu]\ncommand = [\"q\"]\n[hypervisor.qemu.values]\nx = 3")
              .starts_with("drover.toml:4: 'hypervisor.qemu.values.x': a string is expected"));
}

TEST_CASE("names, MAC addresses, bridges, addresses") {
    for (const char* name : {"a", "vm1", "A.b_c-d", "0"}) {
        CHECK_MESSAGE(valid_name(name), name);
    }
    CHECK(valid_name(std::string(64, 'a')));
    CHECK_FALSE(valid_name(std::string(65, 'a')));
    for (const char* name : {"", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "\xc3\xa4"}) {
        CHECK_FALSE_MESSAGE(valid_name(name), name);
    }
    CHECK(valid_mac("02:00:00:00:00:10"));
    for (const char* mac : {"02:00:00:00:00",
                            "02:00:00:00:00:1G",
                            "03:00:00:00:00:10",
                            "02-00-00-00-00-10",
                            "02:00:00:00:00:AB",
                            "02:00:00:00:00:100"}) {
        CHECK_FALSE_MESSAGE(valid_mac(mac), mac);
    }
    CHECK(valid_bridge("br0"));
    for (const char* bridge : {"", ".", "..", "a/b", "0123456789abcdef", "br 0"}) {
        CHECK_FALSE_MESSAGE(valid_bridge(bridge), bridge);
    }
    CHECK(valid_address("10.1.0.10/24"));
    CHECK(valid_address("2001:db8::1/64"));
    for (const char* address :
         {"10.1.0.10", "10.1.0.10/33", "10.1.0/24", "::1/129", "x/24", "10.1.0.10/", "/24"}) {
        CHECK_FALSE_MESSAGE(valid_address(address), address);
    }
}

TEST_CASE("a pattern is for the whole value, and long values match none") {
    CHECK(matches_pattern("256M", "[1-9][0-9]*[KMG]"));
    CHECK_FALSE(matches_pattern("256M,share=on", "[1-9][0-9]*[KMG]"));
    CHECK_FALSE(matches_pattern("256M\n", "[1-9][0-9]*[KMG]"));
    CHECK(matches_pattern(std::string(256, 'a'), "a*"));
    CHECK_FALSE(matches_pattern(std::string(257, 'a'), "a*"));
}

TEST_CASE("what this site lets in of Xen") {
    const auto read = [](const std::string& lines) {
        return parse_site_config("[hypervisor.xen]\n" + lines, "drover.toml");
    };
    const SiteConfig site = read("vif-script = \"vif-route\"\ndisk-script = \"/opt/block\"");
    CHECK(site.hypervisors.at("xen").nic_script == "vif-route");
    CHECK(site.hypervisors.at("xen").disk_script == "/opt/block");
    CHECK(value_patterns(read("types = [\"pvh\"]"), "xen").at("type") == "pvh");
    CHECK_THROWS_AS(read("types = [\"hvm\"]"), Error);
    CHECK_THROWS_AS(read("vif-script = \"../evil\""), Error);
    CHECK_THROWS_AS(read("command = [\"xl\"]"), Error);
}
