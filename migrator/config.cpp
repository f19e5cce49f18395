// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/config.h"

#include "migrator/command_template.h"
#include "migrator/config_reader.h"
#include "migrator/paths.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <regex>

#include <arpa/inet.h>
#include <unistd.h>

namespace drover {
namespace {

// What std::regex is let loose on: it recurses, and a value needs no more.
constexpr size_t longest_value = 256;
// It counts repetitions in a long and does not look whether they fit.
constexpr size_t longest_number = 6;

bool has_long_number(std::string_view text) {
    size_t digits = 0;
    return std::any_of(text.begin(), text.end(), [&](char c) {
        digits = c >= '0' && c <= '9' ? digits + 1 : 0;
        return digits > longest_number;
    });
}

bool word_characters(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '.' || c == '_' || c == '-';
    });
}

bool ip_address(const std::string& text) {
    std::array<unsigned char, sizeof(in6_addr)> bytes;
    return ::inet_pton(AF_INET, text.c_str(), bytes.data()) == 1 ||
           ::inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1;
}

std::optional<unsigned> whole_number(std::string_view text, unsigned most) {
    unsigned value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value > most) {
        return std::nullopt;
    }
    return value;
}

std::map<std::string, std::string> built_in_patterns(const std::string& hypervisor) {
    std::map<std::string, std::string> patterns{{"memory", "[1-9][0-9]{0,8}[KMGT]"},
                                                {"cpus", "[1-9][0-9]{0,2}"}};
    if (hypervisor == "xen") {
        patterns["max-memory"] = patterns["memory"];
        patterns["type"] = "pv|pvh";
        patterns["uuid"] = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";
        patterns["vdevs"] = "(xvd|[hs]d)[a-z]{1,2}(,(xvd|[hs]d)[a-z]{1,2})*";
    }
    return patterns;
}

bool valid_value_name(const std::string& name) {
    static const std::regex pattern("[a-z][a-z0-9-]{0,31}");
    constexpr std::array<std::string_view, 6> taken{"vm", "qmp", "disk", "nic", "disks", "nics"};
    return std::regex_match(name, pattern) &&
           std::find(taken.begin(), taken.end(), name) == taken.end();
}

PortRange read_ports(ConfigTable& root) {
    PortRange range;
    const auto text = root.string("ports");
    if (!text) {
        return range;
    }
    const size_t dash = std::min(text->find('-'), text->size());
    const auto first = whole_number(std::string_view(*text).substr(0, dash), 65535);
    const auto last = dash == text->size()
                          ? first
                          : whole_number(std::string_view(*text).substr(dash + 1), 65535);
    if (!first || !last || *first == 0 || *first > *last) {
        root.fail("ports",
                  fmt::format("a range such as \"10809-10872\" is expected, not \"{}\"", *text));
    }
    range.first = static_cast<uint16_t>(*first);
    range.last = static_cast<uint16_t>(*last);
    return range;
}

mode_t read_mode(ConfigTable& root, mode_t fallback) {
    const auto text = root.string("socket-mode");
    if (!text) {
        return fallback;
    }
    unsigned mode = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), mode, 8);
    if (error != std::errc{} || end != text->data() + text->size() || (mode & ~0770U) != 0 ||
        (mode & 0600U) != 0600U) {
        root.fail(
            "socket-mode",
            fmt::format("an octal mode is expected that lets the owner in and others out, \"0600\" "
                        "or \"0660\", not \"{}\"",
                        *text));
    }
    return mode;
}

Limits read_limits(ConfigTable& table) {
    Limits limits;
    limits.disks = table.integer("disks", 1, 256).value_or(limits.disks);
    limits.disk_size = table.size("disk-size").value_or(limits.disk_size);
    limits.nics = table.integer("nics", 0, 256).value_or(limits.nics);
    limits.addresses = table.integer("addresses", 1, 256).value_or(limits.addresses);
    limits.memory = table.size("memory").value_or(limits.memory);
    table.only_known();
    return limits;
}

Timeouts read_timeouts(ConfigTable& table) {
    Timeouts timeouts;
    const auto seconds = [&table](const char* key, std::chrono::seconds& value) {
        value = std::chrono::seconds(
            table.integer(key, 1, 86400).value_or(static_cast<uint64_t>(value.count())));
    };
    seconds("connect", timeouts.connect);
    seconds("start", timeouts.start);
    seconds("stop", timeouts.stop);
    seconds("handover", timeouts.handover);
    seconds("hook", timeouts.hook);
    table.only_known();
    return timeouts;
}

std::vector<std::string> read_networks(ConfigTable& table) {
    std::vector<std::string> networks = table.strings("networks");
    for (const std::string& network : networks) {
        if (!valid_address(network)) {
            table.fail(
                "networks",
                fmt::format("networks such as \"10.1.0.0/16\" are expected, not \"{}\"", network));
        }
    }
    return networks;
}

TunnelSite read_tunnel(ConfigTable& table) {
    TunnelSite found;
    found.port =
        table.required_string("port", "the name of a NIC's port, such as \"tap{nic.index}\"");
    if (const auto error = template_error({found.port}, TemplateGroup::nic, {})) {
        table.fail("port", *error);
    }
    found.networks = read_networks(table);
    table.only_known();
    return found;
}

StretchedSite read_stretched(ConfigTable& table) {
    StretchedSite found{true, read_networks(table)};
    table.only_known();
    return found;
}

HypervisorTemplate read_hypervisor(ConfigTable& table) {
    HypervisorTemplate found;
    found.values = built_in_patterns("qemu");
    if (auto values = table.table("values")) {
        for (const std::string& name : values->keys()) {
            if (!valid_value_name(name)) {
                values->fail(
                    name,
                    "a name of lower-case letters, digits and '-' is expected that is not vm, qmp, "
                    "disk, disks, nic or nics");
            }
            const std::string pattern = *values->string(name.c_str());
            if (pattern.size() > longest_value) {
                values->fail(
                    name,
                    fmt::format("a pattern of {} characters at most is expected", longest_value));
            }
            if (has_long_number(pattern)) {
                values->fail(name,
                             fmt::format("a pattern without numbers of more than {} digits is "
                                         "expected",
                                         longest_number));
            }
            try {
                const std::regex check(pattern);
            } catch (const std::regex_error& error) {
                values->fail(name,
                             fmt::format("a regular expression is expected: {}", error.what()));
            }
            found.values[name] = pattern;
        }
    }
    const auto words = [&](const char* key, TemplateGroup group) {
        auto read = table.strings(key);
        if (const auto error = template_error(read, group, found.values)) {
            table.fail(key, *error);
        }
        return read;
    };
    found.command = words("command", TemplateGroup::command);
    if (found.command.empty() || found.command[0].empty()) {
        table.fail("command", "an array is expected: the program, then its arguments");
    }
    found.disk_arguments = words("disk-arguments", TemplateGroup::disk);
    found.nic_arguments = words("nic-arguments", TemplateGroup::nic);
    table.only_known();
    return found;
}

// The name of a script in Xen's own folder of them, or a path.
std::string read_script(ConfigTable& table, const char* key) {
    const std::string script = table.string(key).value_or("");
    if (table.has(key) && !script.starts_with('/') && !valid_name(script)) {
        table.fail(key,
                   fmt::format("the name of one of Xen's hotplug scripts, or an absolute path, is "
                               "expected, not \"{}\"",
                               script));
    }
    return script;
}

HypervisorTemplate read_xen(ConfigTable& table) {
    HypervisorTemplate found;
    found.values = built_in_patterns("xen");
    if (table.has("types")) {
        const std::vector<std::string> types = table.strings("types");
        for (const std::string& type : types) {
            if (type != "pv" && type != "pvh") {
                table.fail("types", fmt::format("\"pv\" and \"pvh\" are known, not \"{}\"", type));
            }
        }
        found.values["type"] = fmt::format("{}", fmt::join(types, "|"));
    }
    found.disk_script = read_script(table, "disk-script");
    found.nic_script = read_script(table, "vif-script");
    table.only_known();
    return found;
}

} // namespace

bool valid_name(std::string_view name) {
    return !name.empty() && name.size() <= 64 && word_characters(name) && name[0] != '.' &&
           name[0] != '_' && name[0] != '-';
}

bool valid_disk_name(std::string_view name) {
    constexpr std::array<std::string_view, 14> taken{"agent.lock",
                                                     "dns.state",
                                                     "dns.state.tmp",
                                                     "guardian.log",
                                                     "hypervisor.log",
                                                     "journal",
                                                     "journal.tmp",
                                                     "last-migration.json",
                                                     "migrate",
                                                     "migrate.lock",
                                                     "qmp",
                                                     "tunnel",
                                                     "tunnel.log",
                                                     "vm.toml"};
    return valid_name(name) && std::find(taken.begin(), taken.end(), name) == taken.end();
}

bool valid_mac(std::string_view mac) {
    static const std::regex pattern("[0-9a-f][02468ace](:[0-9a-f]{2}){5}");
    return mac.size() == 17 && std::regex_match(mac.begin(), mac.end(), pattern);
}

bool known_hypervisor(std::string_view hypervisor) {
    return hypervisor == "qemu" || hypervisor == "xen" || hypervisor == "none";
}

bool valid_bridge(std::string_view bridge) {
    return !bridge.empty() && bridge.size() <= 15 && word_characters(bridge) && bridge != "." &&
           bridge != "..";
}

bool valid_address(std::string_view address) {
    const size_t slash = address.find('/');
    if (slash == std::string_view::npos) {
        return false;
    }
    const std::string ip(address.substr(0, slash));
    return ip_address(ip) &&
           whole_number(address.substr(slash + 1), ip.find(':') == std::string::npos ? 32 : 128);
}

bool valid_ip(std::string_view address) {
    return ip_address(std::string(address));
}

std::map<std::string, std::string> value_patterns(const SiteConfig& site,
                                                  const std::string& hypervisor) {
    const auto found = site.hypervisors.find(hypervisor);
    return found == site.hypervisors.end() ? built_in_patterns(hypervisor) : found->second.values;
}

bool matches_pattern(const std::string& value, const std::string& pattern) {
    return value.size() <= longest_value && std::regex_match(value, std::regex(pattern));
}

SiteConfig parse_site_config(std::string_view text, const std::string& path) {
    const ConfigFile file(text, path);
    ConfigTable root = file.root();
    SiteConfig site;
    site.path = path;
    if (const auto images = root.string("images")) {
        if (!images->starts_with('/')) {
            root.fail("images", fmt::format("an absolute path is expected, not \"{}\"", *images));
        }
        site.images = *images;
    }
    site.agent_writes = root.strings("agent-writes");
    for (const std::string& folder : site.agent_writes) {
        if (!folder.starts_with('/')) {
            root.fail("agent-writes",
                      fmt::format("absolute paths of folders are expected, not \"{}\"", folder));
        }
    }
    if (const auto listen = root.string("listen")) {
        if (*listen != "*" && !ip_address(*listen)) {
            root.fail("listen",
                      fmt::format("an IP address of this host, or \"*\", is expected, not \"{}\"",
                                  *listen));
        }
        site.listen = *listen;
    }
    site.ports = read_ports(root);
    site.bridges = root.strings("bridges");
    for (const std::string& bridge : site.bridges) {
        if (!valid_bridge(bridge)) {
            root.fail("bridges", fmt::format("names of bridges are expected, not \"{}\"", bridge));
        }
    }
    site.socket_group = root.string("socket-group").value_or("");
    site.socket_mode = read_mode(root, site.socket_group.empty() ? 0600 : 0660);
    if (auto limits = root.table("limits")) {
        site.limits = read_limits(*limits);
    }
    if (auto tunnel = root.table("tunnel")) {
        site.tunnel = read_tunnel(*tunnel);
    }
    if (auto stretched = root.table("stretched")) {
        site.stretched = read_stretched(*stretched);
    }
    if (auto timeouts = root.table("timeouts")) {
        site.timeouts = read_timeouts(*timeouts);
    }
    if (auto hypervisors = root.table("hypervisor")) {
        if (auto qemu = hypervisors->table("qemu")) {
            site.hypervisors["qemu"] = read_hypervisor(*qemu);
        }
        if (auto xen = hypervisors->table("xen")) {
            site.hypervisors["xen"] = read_xen(*xen);
        }
        hypervisors->only_known();
    }
    root.only_known();
    return site;
}

SiteConfig load_site_config(const std::string& path) {
    std::string text;
    try {
        text = read_file(path);
    } catch (const Error& error) {
        throw Error(ErrorKind::usage, error.what(), error.sys_errno());
    }
    return parse_site_config(text, path);
}

SiteConfig load_site_config() {
    if (!paths().conf_named && ::access(paths().conf.c_str(), F_OK) != 0 && errno == ENOENT) {
        SiteConfig defaults;
        defaults.path = paths().conf;
        return defaults;
    }
    return load_site_config(paths().conf);
}

} // namespace drover
