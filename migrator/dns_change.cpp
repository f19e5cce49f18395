// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_change.h"

#include "common/secrets.h"
#include "migrator/paths.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include <unistd.h>

namespace drover {
namespace {

// Each look but the first is behind an update, or a race that was lost.
constexpr int most_looks = 4;
constexpr size_t most_addresses = 16;

const DnsSpec& spec_of(const VmFile& vm) {
    if (!vm.network.dns) {
        throw Error(ErrorKind::usage,
                    fmt::format("{} has no [network.dns], by which the DNS records of {} could be "
                                "changed",
                                vm.path,
                                vm.name));
    }
    return *vm.network.dns;
}

void remove_state(const VmFile& vm) {
    if (::unlink(paths().dns_state(vm.name).c_str()) != 0 && errno != ENOENT) {
        throw_errno(paths().dns_state(vm.name));
    }
}

Error no_zone(const VmFile& vm, const DnsServer& server, const std::string& name, bool ptr) {
    return {ErrorKind::refused,
            fmt::format("DNS server {}: it is not authoritative for {}{}",
                        server.text(),
                        name,
                        ptr ? fmt::format("; `ptr = false` in [network.dns] of {} leaves PTR "
                                          "records alone",
                                          vm.path)
                            : "")};
}

std::string zone_of(const VmFile& vm, DnsServer& server, const std::string& name, bool ptr) {
    const auto zone = server.zone_of(name);
    if (!zone) {
        throw no_zone(vm, server, name, ptr);
    }
    return *zone;
}

std::set<std::string> fixed_addresses(const VmFile& vm, const std::string& host) {
    const auto found = spec_of(vm).addresses.find(host);
    if (found == spec_of(vm).addresses.end()) {
        throw Error(ErrorKind::usage,
                    fmt::format("[network.dns.address] of {} does not say which addresses {} has "
                                "at {}",
                                vm.path,
                                vm.name,
                                host));
    }
    return {found->second.begin(), found->second.end()};
}

std::string changed_meanwhile(const DnsServer& server, const DnsGoal& goal, const DnsRecords& now) {
    return fmt::format("DNS server {}: somebody else has changed a record, and it is left as it "
                       "is: {}; it was: {}; it was to become: {}",
                       server.text(),
                       text_of(now),
                       text_of(goal.before),
                       text_of(goal.to));
}

using ByZone = std::map<std::string, DnsGoals>;

ByZone by_zone(const DnsGoals& goals) {
    ByZone zones;
    for (const DnsGoal& goal : goals) {
        zones[goal.zone].push_back(goal);
    }
    return zones;
}

// One update for all; looked at again until nothing is left to do. Returns what is foreign.
std::vector<std::string> reach_zone(DnsServer& server,
                                    const DnsState& state,
                                    const std::string& zone,
                                    const DnsGoals& goals) {
    for (int look = 1;; ++look) {
        std::vector<std::string> foreign;
        std::vector<DnsUpdate> open;
        for (const DnsGoal& goal : goals) {
            const DnsRecords now = server.look_up(goal.to.name, goal.to.type);
            const DnsStanding standing = standing_of(state, goal, now);
            if (standing == DnsStanding::foreign) {
                foreign.push_back(changed_meanwhile(server, goal, now));
            } else if (standing == DnsStanding::open) {
                open.push_back({now, goal.to});
            }
        }
        if (open.empty()) {
            return foreign;
        }
        if (look == most_looks) {
            throw Error(ErrorKind::state,
                        fmt::format("DNS server {}: it has been told that {}, and still has {}",
                                    server.text(),
                                    text_of(open.front().to),
                                    text_of(open.front().from)));
        }
        server.update(zone, open);
    }
}

std::vector<std::string> reach(DnsServer& server, const DnsState& state, const DnsGoals& goals) {
    std::vector<std::string> foreign;
    for (const auto& [zone, part] : by_zone(goals)) {
        const auto more = reach_zone(server, state, zone, part);
        foreign.insert(foreign.end(), more.begin(), more.end());
    }
    return foreign;
}

// Updates that change nothing: the server says whether the real ones would be let through.
void try_key(DnsServer& server, const DnsGoals& goals) {
    for (const auto& [zone, part] : by_zone(goals)) {
        std::vector<DnsUpdate> nothing;
        for (const DnsGoal& goal : part) {
            nothing.push_back({goal.before, goal.before});
        }
        if (!server.update(zone, nothing)) {
            throw Error(
                ErrorKind::state,
                fmt::format("DNS server {}: records of zone {} change as they are looked at",
                            server.text(),
                            zone));
        }
    }
}

// Its zone is not known before the address is.
DnsGoals new_ptrs(const VmFile& vm,
                  DnsServer& server,
                  const DnsState& state,
                  const std::set<std::string>& addresses) {
    std::set<std::string> known;
    for (const auto& entry : state.entries) {
        known.insert(entry.before.name);
    }
    DnsGoals goals;
    for (const std::string& address : addresses) {
        const std::string name = reverse_dns_name(address);
        if (spec_of(vm).ptr && !known.contains(name)) {
            const std::string zone = zone_of(vm, server, name, true);
            goals.push_back(new_ptr(state, zone, address, spec_of(vm).names.front()));
        }
    }
    return goals;
}

DnsState::Entry
entry_of(DnsServer& server, const std::string& zone, const std::string& name, DnsType type) {
    return {zone, server.look_up(name, type)};
}

std::vector<std::string> reach_moved(const VmFile& vm, const std::set<std::string>& addresses) {
    const auto state = read_dns_state(vm.name);
    if (!state) {
        return {};
    }
    DnsServer server(spec_of(vm));
    // The names first: they are what clients ask for.
    std::vector<std::string> foreign = reach(server, *state, moved(*state, addresses));
    const auto more = reach(server, *state, new_ptrs(vm, server, *state, addresses));
    foreign.insert(foreign.end(), more.begin(), more.end());
    remove_state(vm);
    return foreign;
}

} // namespace

bool moves_dns(const VmFile& vm, bool disk_only, bool detach, bool to_plain_server) {
    const bool vm_goes = vm.hypervisor == "none" ? detach : !disk_only;
    return vm.network.dns && vm_goes && !to_plain_server;
}

std::optional<DnsState> read_dns_state(const std::string& vm) {
    const std::string path = paths().dns_state(vm);
    const auto bytes = read_whole_file(path);
    return bytes ? std::optional(parse_dns_state(*bytes, path)) : std::nullopt;
}

DnsState survey_dns(const VmFile& vm, const std::string& migration, const std::string& host) {
    const DnsSpec& spec = spec_of(vm);
    const auto earlier = read_dns_state(vm.name);
    std::set<std::string> addresses;
    if (!host.empty() && spec.address_hook.empty()) {
        addresses = fixed_addresses(vm, host);
    }
    DnsServer server(spec);
    DnsState state;
    state.migration = migration;
    state.host = host;
    state.ttl = spec.ttl;
    for (const std::string& name : spec.names) {
        const std::string zone = zone_of(vm, server, name, false);
        auto v4 = entry_of(server, zone, name, DnsType::a);
        auto v6 = entry_of(server, zone, name, DnsType::aaaa);
        if (v4.before.data.empty() && v6.before.data.empty()) {
            throw Error(ErrorKind::refused,
                        fmt::format("DNS server {}: {} has neither an A nor an AAAA record: add "
                                    "it, with the address that {} has now",
                                    server.text(),
                                    name,
                                    vm.name));
        }
        state.entries.push_back(std::move(v4));
        state.entries.push_back(std::move(v6));
    }
    for (const std::string& address : addresses_of(state)) {
        if (spec.ptr) {
            const std::string name = reverse_dns_name(address);
            const std::string zone = zone_of(vm, server, name, true);
            state.entries.push_back(entry_of(server, zone, name, DnsType::ptr));
        }
    }
    DnsGoals all = restored(state);
    for (DnsGoal& goal : new_ptrs(vm, server, state, addresses)) {
        const DnsRecords now = server.look_up(goal.to.name, DnsType::ptr);
        if (standing_of(state, goal, now) == DnsStanding::foreign) {
            throw Error(ErrorKind::refused,
                        fmt::format("DNS server {}: the new address has a PTR record of somebody "
                                    "else, {}: remove it, or `ptr = false` in [network.dns] of {}",
                                    server.text(),
                                    text_of(now),
                                    vm.path));
        }
        goal.before = now;
        all.push_back(std::move(goal));
    }
    try_key(server, all);
    if (earlier) {
        keep_ttls(state, *earlier);
    }
    return state;
}

void keep_dns_state(const VmFile& vm, const DnsState& state) {
    make_directories(paths().vm_state(vm.name), 0700);
    write_file_durably(paths().dns_state(vm.name), dns_state_text(state));
}

void lower_dns(const VmFile& vm, const DnsState& state) {
    DnsServer server(spec_of(vm));
    keep_dns_state(vm, state);
    const auto foreign = reach(server, state, lowered(state));
    if (!foreign.empty()) {
        throw Error(ErrorKind::state, foreign.front());
    }
}

std::vector<std::string> restore_dns(const VmFile& vm) {
    const auto state = read_dns_state(vm.name);
    if (!state) {
        return {};
    }
    DnsServer server(spec_of(vm));
    auto foreign = reach(server, *state, restored(*state));
    remove_state(vm);
    return foreign;
}

asio::awaitable<std::vector<std::string>>
move_dns(const SiteConfig& site, VmFile vm, HookEnvironment environment) {
    std::set<std::string> addresses;
    std::vector<std::string> foreign;
    std::string host = environment.to;
    bool owed = false;
    std::function<void()> note = [&] {
        auto state = read_dns_state(vm.name);
        owed = state.has_value();
        if (owed) {
            state->moved = true;
            host = host.empty() ? state->host : host;
            state->host = host;
            keep_dns_state(vm, *state);
        }
    };
    co_await on_a_thread(std::move(note));
    if (!owed) {
        co_return foreign;
    }
    const DnsSpec& spec = spec_of(vm);
    if (spec.address_hook.empty()) {
        addresses = fixed_addresses(vm, host);
    } else {
        environment.to = host;
        const std::string printed = co_await run_printing_hook(
            "address", spec.address_hook, std::move(environment), site.timeouts.hook);
        addresses = parse_printed_addresses(printed);
    }
    std::function<void()> work = [&] { foreign = reach_moved(vm, addresses); };
    co_await on_a_thread(std::move(work));
    co_return foreign;
}

asio::awaitable<std::vector<std::string>>
settle_dns(const SiteConfig& site, VmFile vm, bool here, HookEnvironment environment) {
    auto state = read_dns_state(vm.name);
    std::vector<std::string> foreign;
    if (!state || state->migration != environment.migration) {
        co_return foreign;
    }
    if (here) {
        std::function<void()> work = [&] {
            if (std::exchange(state->moved, false)) { // it was there, and was taken back by force
                keep_dns_state(vm, *state);
            }
            foreign = restore_dns(vm);
        };
        co_await on_a_thread(std::move(work));
        co_return foreign;
    }
    foreign = co_await move_dns(site, std::move(vm), std::move(environment));
    co_return foreign;
}

std::set<std::string> parse_printed_addresses(const std::string& printed) {
    std::set<std::string> addresses;
    std::istringstream lines(printed);
    for (std::string line; std::getline(lines, line);) {
        if (!valid_ip(line) || addresses.size() == most_addresses) {
            throw Error(ErrorKind::refused,
                        fmt::format("hook address: an address on each line is expected, {} at "
                                    "most, not \"{}\"",
                                    most_addresses,
                                    line.substr(0, 80)));
        }
        addresses.insert(canonical_ip(line));
    }
    if (addresses.empty()) {
        throw Error(ErrorKind::refused, "hook address: it printed no address");
    }
    return addresses;
}

} // namespace drover
