// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/vm_file.h"

#include "common/secrets.h"
#include "migrator/config_reader.h"
#include "migrator/dns_key.h"
#include "migrator/paths.h"
#include "migrator/state_files.h"
#include "tunnel/core/keep.h"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>

#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

namespace fs = std::filesystem;

constexpr size_t most_dns_names = 16; // and addresses
constexpr uint32_t most_dns_ttl = 86400;

// A fenced disk's image is set aside as FILE.fenced-G: the plugin knows what to do with it.
bool set_aside(const std::string& file) {
    const fs::path path(file);
    const std::string prefix = path.filename().string() + ".fenced-";
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(path.parent_path(), ignored)) {
        if (entry.path().filename().string().starts_with(prefix)) {
            return true;
        }
    }
    return false;
}

void check_image(const ConfigTable& table, const std::string& file) {
    struct stat info {};
    if (::stat(file.c_str(), &info) != 0) {
        const int error = errno;
        if (error != ENOENT || !set_aside(file)) {
            table.fail("file",
                       fmt::format("a raw image or a block device is expected at {}: {}",
                                   file,
                                   std::strerror(error)));
        }
        return;
    }
    if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) {
        table.fail("file",
                   fmt::format("a raw image or a block device is expected: {} is neither", file));
    }
}

DiskSpec read_disk(ConfigTable& table, HostCheck check) {
    DiskSpec disk;
    disk.name = table.required_string("name", "a name such as \"root\"");
    if (!valid_disk_name(disk.name)) {
        table.fail("name",
                   fmt::format("letters, digits, '.', '_' and '-' are expected, 64 at most, a "
                               "letter or digit first, and no name of Drover's own such as "
                               "\"journal\" or \"qmp\", not \"{}\"",
                               disk.name));
    }
    disk.store.file = table.string("file").value_or("");
    disk.store.uri = table.string("uri").value_or("");
    if (table.has("file") && table.has("uri")) {
        table.fail("uri", "either 'file' or 'uri' is expected, not both");
    }
    if (table.has("uri")) {
        const std::string& uri = disk.store.uri;
        if (!uri.starts_with("nbd://") && !uri.starts_with("nbds://") &&
            !uri.starts_with("nbd+unix://") && !uri.starts_with("nbds+unix://")) {
            table.fail("uri",
                       fmt::format("an NBD URI is expected (nbd://, nbds://, nbd+unix://, "
                                   "nbds+unix://), not \"{}\"",
                                   uri));
        }
    } else {
        table.required_string("file", "the path of a raw image or a block device, or 'uri'");
        if (!disk.store.file.starts_with('/')) {
            table.fail("file",
                       fmt::format("an absolute path is expected, not \"{}\"", disk.store.file));
        }
        if (check == HostCheck::must_exist) {
            check_image(table, disk.store.file);
        }
    }
    table.only_known();
    return disk;
}

NicSpec read_nic(ConfigTable& table) {
    NicSpec nic;
    nic.mac = table.required_string("mac", "an Ethernet address such as \"02:00:00:00:00:10\"");
    std::transform(nic.mac.begin(), nic.mac.end(), nic.mac.begin(), [](char c) {
        return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    if (!valid_mac(nic.mac)) {
        table.fail("mac",
                   fmt::format("an Ethernet address of one card, such as \"02:00:00:00:00:10\", is "
                               "expected, not \"{}\"",
                               nic.mac));
    }
    nic.bridge = table.string("bridge").value_or("");
    if (table.has("bridge") && !valid_bridge(nic.bridge)) {
        table.fail("bridge",
                   fmt::format("the name of a bridge is expected, not \"{}\"", nic.bridge));
    }
    nic.addresses = table.strings("addresses");
    for (const std::string& address : nic.addresses) {
        if (!valid_address(address)) {
            table.fail("addresses",
                       fmt::format("addresses with a prefix length, such as \"10.1.0.10/24\", are "
                                   "expected, not \"{}\"",
                                   address));
        }
    }
    const auto plain_addresses = [&table](const char* key) {
        std::vector<std::string> found = table.strings(key);
        for (const std::string& address : found) {
            if (!valid_ip(address)) {
                table.fail(
                    key,
                    fmt::format("addresses such as \"fe80::1\" are expected, not \"{}\"", address));
            }
        }
        return found;
    };
    nic.gateways = plain_addresses("gateways");
    nic.link_locals = plain_addresses("link-locals");
    nic.home_bridge = table.string("home-bridge").value_or("");
    if (table.has("home-bridge") && !valid_bridge(nic.home_bridge)) {
        table.fail("home-bridge",
                   fmt::format("the name of a bridge is expected, not \"{}\"", nic.home_bridge));
    }
    table.only_known();
    return nic;
}

std::vector<std::string> read_hook(ConfigTable& table, const char* key, HostCheck check) {
    std::vector<std::string> argv = table.strings(key);
    if (table.has(key) && (argv.empty() || argv[0].empty())) {
        table.fail(key, "an array is expected: the program, then its arguments");
    }
    const bool path = !argv.empty() && argv[0].find('/') != std::string::npos;
    if (path && check == HostCheck::must_exist && ::access(argv[0].c_str(), X_OK) != 0) {
        table.fail(key,
                   fmt::format("an executable program is expected at {}: {}",
                               argv[0],
                               std::strerror(errno)));
    }
    return argv;
}

// "10.1.0.53", "10.1.0.53:5353", "2001:db8::53", "[2001:db8::53]:5353".
void read_dns_server(ConfigTable& table, DnsSpec& dns) {
    const std::string text =
        table.required_string("server", "the address of a DNS server that has the zones itself");
    static const std::regex with_port(R"((?:\[([^\]]*)\]|([^:]*)):([0-9]{1,5}))");
    std::smatch parts;
    dns.server = text;
    if (std::regex_match(text, parts, with_port)) {
        const int port = std::stoi(parts[3]);
        dns.server = parts[1].matched ? parts[1] : parts[2];
        dns.port = port <= 65535 ? static_cast<uint16_t>(port) : uint16_t{0};
    }
    if (!valid_ip(dns.server) || dns.port == 0) {
        table.fail("server",
                   fmt::format("an address, or address and port, such as \"10.1.0.53\" or "
                               "\"[2001:db8::53]:5353\", is expected, not \"{}\"",
                               text));
    }
    dns.server = canonical_ip(dns.server);
}

void read_dns_names(ConfigTable& table, DnsSpec& dns) {
    const std::vector<std::string> names = table.strings("names");
    if (names.empty() || names.size() > most_dns_names) {
        table.fail("names",
                   fmt::format("the VM's names are expected, such as [\"vm1.example.org\"], {} at "
                               "most",
                               most_dns_names));
    }
    for (const std::string& name : names) {
        const auto canonical = canonical_dns_name(name);
        if (!canonical ||
            std::find(dns.names.begin(), dns.names.end(), *canonical) != dns.names.end()) {
            table.fail("names",
                       fmt::format("domain names are expected, each once, with all of their parts, "
                                   "not \"{}\"",
                                   name));
        }
        dns.names.push_back(*canonical);
    }
}

void read_dns_key_file(ConfigTable& table, DnsSpec& dns, HostCheck check) {
    dns.key_file = table.required_string("key-file", "the path of a key of tsig-keygen(8)");
    if (!dns.key_file.starts_with('/')) {
        table.fail("key-file",
                   fmt::format("an absolute path is expected, not \"{}\"", dns.key_file));
    }
    if (check == HostCheck::must_exist) {
        try {
            load_dns_key(dns.key_file);
        } catch (const Error& error) {
            table.fail("key-file", error.what());
        }
    }
}

void read_dns_addresses(ConfigTable& table, DnsSpec& dns) {
    for (const std::string& host : table.keys()) {
        const std::vector<std::string> addresses = table.strings(host.c_str());
        if (addresses.empty() || addresses.size() > most_dns_names) {
            table.fail(
                host,
                fmt::format("the VM's addresses there are expected, {} at most", most_dns_names));
        }
        for (const std::string& address : addresses) {
            if (!valid_ip(address)) {
                table.fail(host,
                           fmt::format("addresses such as \"10.2.0.10\", without the length of a "
                                       "prefix, are expected, not \"{}\"",
                                       address));
            }
            dns.addresses[host].push_back(canonical_ip(address));
        }
    }
}

DnsSpec read_dns(ConfigTable& table, HostCheck check) {
    DnsSpec dns;
    read_dns_names(table, dns);
    read_dns_server(table, dns);
    read_dns_key_file(table, dns, check);
    dns.ttl = static_cast<uint32_t>(table.integer("ttl", 1, most_dns_ttl).value_or(dns.ttl));
    dns.ptr = table.boolean("ptr").value_or(dns.ptr);
    if (auto addresses = table.table("address")) {
        read_dns_addresses(*addresses, dns);
    }
    dns.address_hook = read_hook(table, "address-hook", check);
    if (dns.addresses.empty() == dns.address_hook.empty()) {
        table.fail("address",
                   "either the VM's addresses at each HOST, in [network.dns.address], or "
                   "'address-hook' is expected");
    }
    table.only_known();
    return dns;
}

using NetworkMode = NetworkSpec::Mode;
constexpr std::pair<NetworkMode, std::string_view> network_modes[] = {
    {NetworkMode::none, "none"},
    {NetworkMode::tunnel, "tunnel"},
    {NetworkMode::stretched, "stretched"},
    {NetworkMode::automatic, "auto"},
};

NetworkSpec read_network(ConfigTable& table, const VmFile& vm, HostCheck check) {
    NetworkSpec network;
    const std::string mode = table.string("mode").value_or("none");
    const auto known = std::find_if(std::begin(network_modes),
                                    std::end(network_modes),
                                    [&](const auto& each) { return each.second == mode; });
    if (known == std::end(network_modes)) {
        table.fail("mode",
                   fmt::format("\"auto\", \"tunnel\", \"stretched\" or \"none\" is expected, not "
                               "\"{}\"",
                               mode));
    }
    network.mode = known->first;
    network.keep = table.string("keep").value_or(network.keep);
    if (!tunnel::parse_keep(network.keep)) {
        table.fail("keep",
                   fmt::format("\"until-idle\", \"forever\" or a time such as \"12h\" is expected, "
                               "not \"{}\"",
                               network.keep));
    }
    network.keep_at_least = table.string("keep-at-least").value_or(network.keep_at_least);
    if (!tunnel::parse_duration_ms(network.keep_at_least)) {
        table.fail(
            "keep-at-least",
            fmt::format("a time such as \"2h\" is expected, not \"{}\"", network.keep_at_least));
    }
    if (auto dns = table.table("dns")) {
        network.dns = read_dns(*dns, check);
    }
    table.only_known();
    if (network.mode == NetworkMode::none) {
        return network;
    }
    if (vm.hypervisor == "none") {
        table.fail(
            "mode",
            fmt::format("\"{}\" is not for hypervisor \"none\": its VM does not move", mode));
    }
    const auto carried = [](const NicSpec& nic) { return !nic.addresses.empty(); };
    if (std::none_of(vm.nics.begin(), vm.nics.end(), carried)) {
        table.fail("mode", fmt::format("\"{}\" needs a [[nic]] with 'addresses'", mode));
    }
    for (const NicSpec& nic : vm.nics) {
        if (!carried(nic)) {
            continue;
        }
        if (network.mode != NetworkMode::tunnel && nic.bridge.empty()) {
            table.fail("mode",
                       fmt::format("\"{}\" needs the bridge at the other site that NIC {} is "
                                   "attached to: its 'bridge'",
                                   mode,
                                   nic.mac));
        }
        if (nic.bridge.empty() && nic.home_bridge.empty()) {
            table.fail("mode",
                       fmt::format("a tunnel needs the bridge that NIC {} is attached to here: its "
                                   "'home-bridge', or 'bridge'",
                                   nic.mac));
        }
    }
    return network;
}

void read_qemu(ConfigTable& table, const SiteConfig& site, VmFile& vm) {
    if (const auto qmp = table.string("qmp")) {
        if (!qmp->starts_with('/')) {
            table.fail(
                "qmp",
                fmt::format("the absolute path of the VM's QMP socket is expected, not \"{}\"",
                            *qmp));
        }
        vm.local["qmp"] = *qmp;
    }
    const auto patterns = value_patterns(site, vm.hypervisor);
    for (const std::string& name : table.keys()) {
        const auto pattern = patterns.find(name);
        if (name == "qmp") {
            continue;
        }
        if (pattern == patterns.end()) {
            std::string known = "qmp";
            for (const auto& [key, ignored] : patterns) {
                known += ", " + key;
            }
            table.fail(name,
                       fmt::format("unknown key; known here: {}; more can be declared in "
                                   "[hypervisor.{}.values] of {}",
                                   known,
                                   vm.hypervisor,
                                   site.path));
        }
        const std::string value = table.scalar(name);
        if (!matches_pattern(value, pattern->second)) {
            table.fail(name,
                       fmt::format("a value that matches {} is expected, not \"{}\"",
                                   pattern->second,
                                   value));
        }
        vm.values[name] = value;
    }
}

void read_xen(ConfigTable& table, const std::string& path, HostCheck check, VmFile& vm) {
    if (const auto config = table.string("config")) {
        const fs::path file = fs::absolute(path).parent_path() / *config;
        if (config->empty() ||
            (check == HostCheck::must_exist && ::access(file.c_str(), R_OK) != 0)) {
            table.fail("config",
                       fmt::format("an xl configuration is expected at {}: {}",
                                   file.string(),
                                   std::strerror(config->empty() ? EINVAL : errno)));
        }
        vm.local["config"] = file.lexically_normal();
    }
    table.only_known();
}

template <class Key>
void check_unique(std::vector<ConfigTable>& tables, const char* key, Key value_of) {
    std::set<std::string> seen;
    for (size_t i = 0; i < tables.size(); ++i) {
        const std::string value = value_of(i);
        if (!value.empty() && !seen.insert(value).second) {
            tables[i].fail(key, fmt::format("\"{}\" is there twice", value));
        }
    }
}

void check_arrived(const std::string& text, const std::string& path, const std::string& vm) {
    check_arrived_vm_text(text, path, fmt::format("{}/{}.toml", paths().vm_files(), vm));
}

std::string load_text(const std::string& path) {
    std::string text;
    try {
        text = read_file(path);
    } catch (const Error& error) {
        throw Error(ErrorKind::usage, error.what(), error.sys_errno());
    }
    const fs::path whole = fs::absolute(path).lexically_normal();
    const std::string vm = whole.parent_path().filename();
    if (whole == paths().arrived_vm_file(vm)) {
        check_arrived(text, path, vm);
    }
    return text;
}

bool is_path(const std::string& name_or_path) {
    return name_or_path.find('/') != std::string::npos || name_or_path.ends_with(".toml");
}

// Where the file of a VM is, or nullopt.
std::optional<std::string> find_vm_file(const std::string& name) {
    for (const std::string& path :
         {paths().vm_files() + "/" + name + ".toml", paths().arrived_vm_file(name)}) {
        if (::access(path.c_str(), F_OK) == 0) {
            return path;
        }
    }
    return std::nullopt;
}

// A TOML basic string.
std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
        }
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            out += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
        } else {
            out += c;
        }
    }
    return out + "\"";
}

std::string quoted(const std::vector<std::string>& words) {
    std::vector<std::string> each;
    for (const std::string& word : words) {
        each.push_back(quoted(word));
    }
    return fmt::format("[{}]", fmt::join(each, ", "));
}

std::string dns_toml(const DnsSpec& dns) {
    const bool is_v6 = dns.server.find(':') != std::string::npos;
    const std::string server = is_v6 ? fmt::format("[{}]:{}", dns.server, dns.port)
                                     : fmt::format("{}:{}", dns.server, dns.port);
    std::string text = fmt::format("\n[network.dns]\nnames = {}\nserver = {}\nkey-file = {}\n"
                                   "ttl = {}\nptr = {}\n",
                                   quoted(dns.names),
                                   quoted(server),
                                   quoted(dns.key_file),
                                   dns.ttl,
                                   dns.ptr);
    if (!dns.address_hook.empty()) {
        return text + fmt::format("address-hook = {}\n", quoted(dns.address_hook));
    }
    text += "\n[network.dns.address]\n";
    for (const auto& [host, addresses] : dns.addresses) {
        text += fmt::format("{} = {}\n", quoted(host), quoted(addresses));
    }
    return text;
}

} // namespace

VmFile parse_vm_file(const SiteConfig& site,
                     std::string_view text,
                     const std::string& path,
                     HostCheck check) {
    const ConfigFile file(text, path);
    ConfigTable root = file.root();
    VmFile vm;
    vm.path = path;
    vm.name = root.required_string("name", "the VM's name");
    if (!valid_name(vm.name)) {
        root.fail("name",
                  fmt::format("letters, digits, '.', '_' and '-' are expected, 64 at most, a "
                              "letter or digit first, not \"{}\"",
                              vm.name));
    }
    vm.hypervisor = root.required_string("hypervisor", "\"qemu\", \"xen\" or \"none\"");
    if (!known_hypervisor(vm.hypervisor)) {
        root.fail(
            "hypervisor",
            fmt::format("\"qemu\", \"xen\" or \"none\" is expected, not \"{}\"", vm.hypervisor));
    }

    auto disks = root.tables("disk");
    if (disks.empty()) {
        root.fail("disk", "is missing: at least one [[disk]] is expected");
    }
    for (ConfigTable& disk : disks) {
        vm.disks.push_back(read_disk(disk, check));
    }
    check_unique(disks, "name", [&vm](size_t i) { return vm.disks[i].name; });
    check_unique(disks, "file", [&vm](size_t i) { return vm.disks[i].store.file; });
    check_unique(disks, "uri", [&vm](size_t i) { return vm.disks[i].store.uri; });

    auto nics = root.tables("nic");
    for (ConfigTable& nic : nics) {
        vm.nics.push_back(read_nic(nic));
    }
    check_unique(nics, "mac", [&vm](size_t i) { return vm.nics[i].mac; });
    if (auto network = root.table("network")) {
        vm.network = read_network(*network, vm, check);
    }

    for (const char* other : {"qemu", "xen"}) {
        if (vm.hypervisor != other && root.has(other)) {
            root.fail(other, fmt::format("is not for hypervisor \"{}\"", vm.hypervisor));
        }
    }
    if (auto qemu = root.table("qemu")) {
        read_qemu(*qemu, site, vm);
    }
    if (auto xen = root.table("xen")) {
        read_xen(*xen, path, check, vm);
    }
    if (auto hooks = root.table("hooks")) {
        vm.hooks.pre_check = read_hook(*hooks, "pre-check", check);
        vm.hooks.pre_switchover = read_hook(*hooks, "pre-switchover", check);
        vm.hooks.post_switchover = read_hook(*hooks, "post-switchover", check);
        vm.hooks.failed = read_hook(*hooks, "failed", check);
        hooks->only_known();
    }
    root.only_known();
    return vm;
}

VmFile load_vm_file(const SiteConfig& site, const std::string& name_or_path, HostCheck check) {
    if (is_path(name_or_path)) {
        return parse_vm_file(site, load_text(name_or_path), name_or_path, check);
    }
    if (!valid_name(name_or_path)) {
        throw Error(
            ErrorKind::usage,
            fmt::format(
                "'{}': neither the name of a VM (letters, digits, '.', '_', '-') nor a path",
                name_or_path));
    }
    const auto path = find_vm_file(name_or_path);
    if (!path) {
        throw Error(ErrorKind::usage,
                    fmt::format("no VM '{0}': there is no {1}/{0}.toml; see drover-vm(5)",
                                name_or_path,
                                paths().vm_files()));
    }
    VmFile vm = parse_vm_file(site, load_text(*path), *path, check);
    if (vm.name != name_or_path) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: 'name': \"{}\" is expected, as the file is called, not \"{}\"",
                                *path,
                                name_or_path,
                                vm.name));
    }
    return vm;
}

void require_arrived_vm_file(const std::string& path, const std::string& vm) {
    if (const auto text = read_whole_file(path)) {
        check_arrived(*text, path, vm);
    }
}

void keep_arrived_vm_file(const std::string& path, const VmFile& vm) {
    require_arrived_vm_file(path, vm.name);
    write_file_atomically(path, arrived_vm_text(to_toml(vm)), 0600);
}

std::vector<std::string> vm_names() {
    std::set<std::string> names;
    std::error_code ignored; // a directory that is not there has none
    for (const auto& entry : fs::directory_iterator(paths().vm_files(), ignored)) {
        if (entry.path().extension() == ".toml" && valid_name(entry.path().stem().string())) {
            names.insert(entry.path().stem());
        }
    }
    for (const auto& entry : fs::directory_iterator(paths().state, ignored)) {
        const std::string name = entry.path().filename();
        if (valid_name(name) && ::access(paths().arrived_vm_file(name).c_str(), F_OK) == 0) {
            names.insert(name);
        }
    }
    return {names.begin(), names.end()};
}

std::string to_toml(const VmFile& vm) {
    std::string text =
        fmt::format("name = {}\nhypervisor = {}\n", quoted(vm.name), quoted(vm.hypervisor));
    for (const DiskSpec& disk : vm.disks) {
        text += fmt::format("\n[[disk]]\nname = {}\n", quoted(disk.name));
        text += disk.store.uri.empty() ? fmt::format("file = {}\n", quoted(disk.store.file))
                                       : fmt::format("uri = {}\n", quoted(disk.store.uri));
    }
    for (const NicSpec& nic : vm.nics) {
        text += fmt::format("\n[[nic]]\nmac = {}\n", quoted(nic.mac));
        if (!nic.bridge.empty()) {
            text += fmt::format("bridge = {}\n", quoted(nic.bridge));
        }
        if (!nic.addresses.empty()) {
            text += fmt::format("addresses = {}\n", quoted(nic.addresses));
        }
        if (!nic.gateways.empty()) {
            text += fmt::format("gateways = {}\n", quoted(nic.gateways));
        }
        if (!nic.link_locals.empty()) {
            text += fmt::format("link-locals = {}\n", quoted(nic.link_locals));
        }
        if (!nic.home_bridge.empty()) {
            text += fmt::format("home-bridge = {}\n", quoted(nic.home_bridge));
        }
    }
    const auto& dns = vm.network.dns;
    if (vm.network.mode != NetworkMode::none || dns) {
        const auto* const mode =
            std::find_if(std::begin(network_modes), std::end(network_modes), [&](const auto& each) {
                return each.first == vm.network.mode;
            });
        text += fmt::format("\n[network]\nmode = \"{}\"\nkeep = {}\nkeep-at-least = {}\n",
                            mode->second,
                            quoted(vm.network.keep),
                            quoted(vm.network.keep_at_least));
    }
    if (dns) {
        text += dns_toml(*dns);
    }
    if (!vm.values.empty() || !vm.local.empty()) {
        text += fmt::format("\n[{}]\n", vm.hypervisor);
        for (const auto* values : {&vm.local, &vm.values}) {
            for (const auto& [name, value] : *values) {
                text += fmt::format("{} = {}\n", name, quoted(value));
            }
        }
    }
    const std::pair<const char*, const std::vector<std::string>*> hooks[] = {
        {"pre-check", &vm.hooks.pre_check},
        {"pre-switchover", &vm.hooks.pre_switchover},
        {"post-switchover", &vm.hooks.post_switchover},
        {"failed", &vm.hooks.failed},
    };
    bool first = true;
    for (const auto& [key, argv] : hooks) {
        if (!argv->empty()) {
            text += fmt::format("{}{} = {}\n", first ? "\n[hooks]\n" : "", key, quoted(*argv));
            first = false;
        }
    }
    return text;
}

} // namespace drover
