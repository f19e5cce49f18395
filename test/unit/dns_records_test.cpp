// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_change.h"
#include "migrator/dns_records.h"
#include "migrator/vm_file.h"

#include <algorithm>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr const char* name = "vm1.example.org.";
constexpr const char* reverse = "10.0.1.10.in-addr.arpa.";

DnsRecords
records(const std::string& owner, DnsType type, uint32_t ttl, const std::set<std::string>& data) {
    return {owner, type, ttl, data};
}

DnsState a_state() {
    DnsState state;
    state.migration = "m";
    state.host = "b";
    state.ttl = 30;
    state.entries = {{"example.org.", records(name, DnsType::a, 3600, {"10.1.0.10"})},
                     {"example.org.", records(name, DnsType::aaaa, 0, {})},
                     {"0.1.10.in-addr.arpa.",
                      records(reverse, DnsType::ptr, 7200, {name, "other.example.org."})}};
    return state;
}

DnsRecords goal_of(const DnsGoals& goals, DnsType type) {
    const auto found = std::find_if(
        goals.begin(), goals.end(), [type](const DnsGoal& goal) { return goal.to.type == type; });
    REQUIRE(found != goals.end());
    return found->to;
}

} // namespace

TEST_CASE("what is kept of records is read again, and nothing else is taken for it") {
    const DnsState state = a_state();
    const std::string text = dns_state_text(state);
    CHECK(parse_dns_state(text, "FILE") == state);
    for (size_t at = 0; at < text.size(); ++at) {
        std::string changed = text;
        changed[at] = static_cast<char>(changed[at] ^ 1);
        CHECK_THROWS_WITH_AS(
            parse_dns_state(changed, "FILE"), doctest::Contains("FILE: it is damaged"), Error);
    }
    CHECK_THROWS_AS(parse_dns_state("", "FILE"), Error);
    CHECK_THROWS_AS(parse_dns_state(text + text, "FILE"), Error);
}

TEST_CASE("longer TTLs are lowered, and put back") {
    DnsState state = a_state();
    CHECK(goal_of(lowered(state), DnsType::a).ttl == 30);
    CHECK(goal_of(lowered(state), DnsType::ptr).ttl == 30);
    CHECK(goal_of(lowered(state), DnsType::a).data == state.entries[0].before.data);
    CHECK(goal_of(restored(state), DnsType::a) == state.entries[0].before);
    state.entries[0].before.ttl = 10;
    CHECK(goal_of(lowered(state), DnsType::a).ttl == 10);
}

TEST_CASE("the names get the new addresses, and PTR records go with them") {
    const DnsState state = a_state();
    const DnsGoals goals = moved(state, {"10.2.0.10", "2001:db8::10"});
    CHECK(goal_of(goals, DnsType::a) == records(name, DnsType::a, 3600, {"10.2.0.10"}));
    CHECK(goal_of(goals, DnsType::aaaa) == records(name, DnsType::aaaa, 3600, {"2001:db8::10"}));
    CHECK(goal_of(goals, DnsType::ptr) ==
          records(reverse, DnsType::ptr, 7200, {"other.example.org."}));
    const DnsGoal ptr = new_ptr(state, "2.10.in-addr.arpa.", "10.2.0.10", name);
    CHECK(ptr.before.data.empty());
    CHECK(ptr.to == records("10.0.2.10.in-addr.arpa.", DnsType::ptr, 3600, {name}));

    const DnsGoals same = moved(state, {"10.1.0.10"});
    CHECK(goal_of(same, DnsType::a) == state.entries[0].before);
    CHECK(goal_of(same, DnsType::ptr) == state.entries[2].before);

    const DnsGoals only_v6 = moved(state, {"2001:db8::10"});
    CHECK(goal_of(only_v6, DnsType::a).data.empty());
}

TEST_CASE("what somebody else has changed is told from what is to be done") {
    const DnsState state = a_state();
    const DnsGoals goals = moved(state, {"10.2.0.10"});
    const DnsGoal& goal = goals.front();
    const auto standing = [&](uint32_t ttl, const std::set<std::string>& data) {
        return standing_of(state, goal, records(name, DnsType::a, ttl, data));
    };
    CHECK(standing(3600, {"10.1.0.10"}) == DnsStanding::open);
    CHECK(standing(30, {"10.1.0.10"}) == DnsStanding::open);
    CHECK(standing(900, {"10.1.0.10"}) == DnsStanding::foreign);
    CHECK(standing(3600, {"10.2.0.10"}) == DnsStanding::reached);
    CHECK(standing(30, {"10.2.0.10"}) == DnsStanding::open);
    CHECK(standing(3600, {"10.1.0.10", "10.1.0.11"}) == DnsStanding::foreign);
    CHECK(standing(3600, {}) == DnsStanding::foreign);
    const DnsGoal& no_v6 = goals.at(1);
    CHECK(standing_of(state, no_v6, records(name, DnsType::aaaa, 0, {})) == DnsStanding::reached);
    CHECK(standing_of(state, no_v6, records(name, DnsType::aaaa, 5, {"::9"})) ==
          DnsStanding::foreign);
}

TEST_CASE("a TTL that was lowered earlier is not taken for the one that was") {
    const DnsState earlier = a_state();
    DnsState state = a_state();
    state.ttl = 60;
    state.entries[0].before.ttl = 30;
    state.entries[2].before.ttl = 900; // somebody's
    keep_ttls(state, earlier);
    CHECK(state.entries[0].before.ttl == 3600);
    CHECK(state.entries[2].before.ttl == 900);
    state.entries[0].before = records(name, DnsType::a, 30, {"10.9.9.9"});
    keep_ttls(state, earlier);
    CHECK(state.entries[0].before.ttl == 30);
}

TEST_CASE("a hook prints addresses, a line each") {
    CHECK(parse_printed_addresses("10.2.0.10\n2001:DB8::1\n") ==
          std::set<std::string>{"10.2.0.10", "2001:db8::1"});
    CHECK(parse_printed_addresses("10.2.0.10") == std::set<std::string>{"10.2.0.10"});
    for (const char* bad : {"", "\n", "10.2.0.10 \n", "10.2.0.10\n\n", "10.2.0.10/24\n", "x\n"}) {
        CHECK_THROWS_AS(parse_printed_addresses(bad), Error);
    }
}

TEST_CASE("names turn only where the VM does") {
    VmFile vm;
    vm.hypervisor = "qemu";
    CHECK(!moves_dns(vm, false, false, false));
    vm.network.dns = DnsSpec();
    CHECK(moves_dns(vm, false, false, false));
    CHECK(!moves_dns(vm, true, true, false));
    vm.hypervisor = "none";
    CHECK(!moves_dns(vm, true, false, false));
    CHECK(moves_dns(vm, true, true, false));
    CHECK(!moves_dns(vm, true, true, true));
}
