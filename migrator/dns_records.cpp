// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_records.h"

#include "common/sealed_json.h"
#include "migrator/config.h"

#include <algorithm>

namespace drover {
namespace {

using nlohmann::json;

constexpr const char* state_format = "drover-dns";
constexpr int state_version = 1;

json entry_json(const DnsState::Entry& entry) {
    return {{"zone", entry.zone},
            {"name", entry.before.name},
            {"type", type_name(entry.before.type)},
            {"ttl", entry.before.ttl},
            {"data", entry.before.data}};
}

DnsType parse_type(const std::string& name) {
    for (const DnsType type : {DnsType::a, DnsType::aaaa, DnsType::ptr}) {
        if (type_name(type) == name) {
            return type;
        }
    }
    throw std::invalid_argument(name);
}

DnsState::Entry parse_entry(const json& from) {
    DnsState::Entry entry;
    entry.zone = from.at("zone").get<std::string>();
    entry.before.name = from.at("name").get<std::string>();
    entry.before.type = parse_type(from.at("type").get<std::string>());
    entry.before.ttl = from.at("ttl").get<uint32_t>();
    entry.before.data = from.at("data").get<std::set<std::string>>();
    if (!canonical_dns_name(entry.zone) || !canonical_dns_name(entry.before.name)) {
        throw std::invalid_argument(entry.before.name);
    }
    for (const std::string& data : entry.before.data) {
        if (entry.before.type != DnsType::ptr && !valid_ip(data)) {
            throw std::invalid_argument(data);
        }
    }
    return entry;
}

bool is_v6(const std::string& address) {
    return address.find(':') != std::string::npos;
}

// What a record gets where there was none: that of the name's other address.
uint32_t usual_ttl(const DnsState& state, const std::string& name) {
    for (const auto& [zone, before] : state.entries) {
        if (before.type != DnsType::ptr && before.name == name && !before.data.empty()) {
            return before.ttl;
        }
    }
    return state.ttl;
}

DnsRecords with_addresses(const DnsState& state,
                          const DnsRecords& before,
                          const std::set<std::string>& addresses) {
    DnsRecords to = before;
    to.data.clear();
    for (const std::string& address : addresses) {
        if (is_v6(address) == (before.type == DnsType::aaaa)) {
            to.data.insert(canonical_ip(address));
        }
    }
    to.ttl = to.data.empty() ? 0 : before.data.empty() ? usual_ttl(state, before.name) : before.ttl;
    return to;
}

DnsRecords without_names(const DnsState& state, const DnsRecords& before) {
    DnsRecords to = before;
    for (const std::string& name : names_of(state)) {
        to.data.erase(name);
    }
    to.ttl = to.data.empty() ? 0 : before.ttl;
    return to;
}

} // namespace

std::string dns_state_text(const DnsState& state) {
    json entries = json::array();
    for (const auto& entry : state.entries) {
        entries.push_back(entry_json(entry));
    }
    return sealed({{"format", state_format},
                   {"version", state_version},
                   {"migration", state.migration},
                   {"host", state.host},
                   {"ttl", state.ttl},
                   {"moved", state.moved},
                   {"entries", std::move(entries)}});
}

DnsState parse_dns_state(std::string_view bytes, const std::string& path) {
    const auto fail = [&path](const char* what) -> Error {
        return {ErrorKind::refused,
                fmt::format("{}: it is {}; it is left as it is. Look at the records of the VM "
                            "yourself, and move it away",
                            path,
                            what)};
    };
    const bool whole = !bytes.empty() && bytes.find('\n') == bytes.size() - 1;
    const auto content = whole ? unsealed(bytes.substr(0, bytes.size() - 1)) : std::nullopt;
    if (!content) {
        throw fail("damaged");
    }
    try {
        if (content->at("format") != state_format) {
            throw fail("no state of DNS records");
        }
        if (content->at("version") != state_version) {
            throw fail("of a newer drover");
        }
        DnsState state;
        state.migration = content->at("migration").get<std::string>();
        state.host = content->at("host").get<std::string>();
        state.ttl = content->at("ttl").get<uint32_t>();
        state.moved = content->at("moved").get<bool>();
        for (const json& entry : content->at("entries")) {
            state.entries.push_back(parse_entry(entry));
        }
        return state;
    } catch (const json::exception&) {
        throw fail("damaged");
    } catch (const std::invalid_argument&) {
        throw fail("damaged");
    }
}

DnsGoals lowered(const DnsState& state) {
    DnsGoals goals;
    for (const auto& [zone, before] : state.entries) {
        DnsRecords to = before;
        to.ttl = std::min(before.ttl, state.ttl);
        goals.push_back({zone, before, std::move(to)});
    }
    return goals;
}

DnsGoals restored(const DnsState& state) {
    DnsGoals goals;
    for (const auto& [zone, before] : state.entries) {
        goals.push_back({zone, before, before});
    }
    return goals;
}

DnsGoals moved(const DnsState& state, const std::set<std::string>& addresses) {
    std::set<std::string> staying;
    for (const std::string& address : addresses) {
        staying.insert(reverse_dns_name(address));
    }
    DnsGoals goals;
    for (const auto& [zone, before] : state.entries) {
        const bool stays = before.type == DnsType::ptr && staying.contains(before.name);
        DnsRecords to = stays                         ? before
                        : before.type == DnsType::ptr ? without_names(state, before)
                                                      : with_addresses(state, before, addresses);
        goals.push_back({zone, before, std::move(to)});
    }
    return goals;
}

DnsGoal new_ptr(const DnsState& state,
                const std::string& zone,
                const std::string& address,
                const std::string& name) {
    DnsRecords none;
    none.name = reverse_dns_name(address);
    none.type = DnsType::ptr;
    DnsRecords to = none;
    to.ttl = usual_ttl(state, name);
    to.data = {name};
    return {zone, std::move(none), std::move(to)};
}

std::set<std::string> addresses_of(const DnsState& state) {
    std::set<std::string> addresses;
    for (const auto& [zone, before] : state.entries) {
        if (before.type != DnsType::ptr) {
            addresses.insert(before.data.begin(), before.data.end());
        }
    }
    return addresses;
}

std::set<std::string> names_of(const DnsState& state) {
    std::set<std::string> names;
    for (const auto& [zone, before] : state.entries) {
        if (before.type != DnsType::ptr) {
            names.insert(before.name);
        }
    }
    return names;
}

DnsStanding standing_of(const DnsState& state, const DnsGoal& goal, const DnsRecords& now) {
    if (now == goal.to || (now.data.empty() && goal.to.data.empty())) {
        return DnsStanding::reached;
    }
    if (now.data != goal.before.data && now.data != goal.to.data) {
        return DnsStanding::foreign;
    }
    const std::initializer_list<uint32_t> ours{
        goal.before.ttl, std::min(goal.before.ttl, state.ttl), goal.to.ttl};
    const bool known_ttl =
        now.data.empty() || std::find(ours.begin(), ours.end(), now.ttl) != ours.end();
    return known_ttl ? DnsStanding::open : DnsStanding::foreign;
}

void keep_ttls(DnsState& state, const DnsState& earlier) {
    for (auto& [zone, now] : state.entries) {
        for (const auto& [earlier_zone, before] : earlier.entries) {
            const bool same = zone == earlier_zone && now.name == before.name &&
                              now.type == before.type && now.data == before.data;
            if (same && now.ttl == std::min(before.ttl, earlier.ttl)) {
                now.ttl = before.ttl;
            }
        }
    }
}

} // namespace drover
