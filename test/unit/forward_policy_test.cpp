// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "migrator/forward_policy.h"

#include <map>

#include <doctest/doctest.h>

using namespace drover;
using Json = nlohmann::json;

namespace {

// A ruleset with one base chain of the forward hook, and another chain.
Json ruleset(const std::string& family, const std::string& policy, const Json& rules) {
    Json list{{{"metainfo", {{"json_schema_version", 1}}}},
              {{"table", {{"family", family}, {"name", "filter"}}}},
              {{"chain",
                {{"family", family},
                 {"table", "filter"},
                 {"name", "FORWARD"},
                 {"hook", "forward"},
                 {"policy", policy}}}},
              {{"chain", {{"family", family}, {"table", "filter"}, {"name", "OTHER"}}}}};
    for (const Json& rule : rules) {
        list.push_back({{"rule",
                         {{"family", family},
                          {"table", "filter"},
                          {"chain", rule.at(0)},
                          {"expr", rule.at(1)}}}});
    }
    return {{"nftables", list}};
}

Json match(const std::string& key, const std::string& value) {
    return {{"match", {{"op", "=="}, {"left", {{"meta", {{"key", key}}}}}, {"right", value}}}};
}

const Json accept{{"accept", nullptr}}, drop{{"drop", nullptr}},
    counter{{"counter", {{"packets", 1}}}};
const BridgeHooks both{true, true};

Json rule(const std::string& chain, const std::vector<Json>& expressions) {
    return Json::array({chain, Json(expressions)});
}

std::vector<DroppingChain> dropping(const std::string& policy, const std::vector<Json>& rules) {
    return dropping_chains(ruleset("ip", policy, rules), "br0", both);
}

} // namespace

TEST_CASE("a forward policy of drop is found where a bridge's frames meet it") {
    const Json policy = ruleset("ip", "drop", Json::array());
    CHECK(dropping_chains(policy, "br0", both).size() == 1);
    CHECK(dropping_chains(policy, "br0", {true, false}).size() == 1);
    CHECK(dropping_chains(policy, "br0", {false, true}).empty());
    CHECK(dropping_chains(policy, "br0", {}).empty());
    CHECK(dropping_chains(ruleset("inet", "drop", Json::array()), "br0", {false, true}).size() ==
          1);
    CHECK(dropping_chains(ruleset("bridge", "drop", Json::array()), "br0", {}).size() == 1);
    CHECK(dropping_chains(ruleset("bridge", "accept", Json::array()), "br0", both).empty());
    CHECK(dropping_chains(ruleset("arp", "drop", Json::array()), "br0", both).empty());
}

TEST_CASE("the rule that is printed is the one that helps") {
    const auto found = dropping("drop", {});
    REQUIRE(found.size() == 1);
    CHECK(found[0].to_add == "iptables -I FORWARD -i br0 -o br0 -j ACCEPT");
    CHECK_FALSE(found[0].may_accept);
    CHECK(dropping("drop",
                   {rule("FORWARD",
                         {match("iifname", "br0"), match("oifname", "br0"), counter, accept})})
              .empty());
    CHECK(dropping_chains(ruleset("bridge", "drop", Json::array()), "br0", {})[0].to_add ==
          "nft 'insert rule bridge filter FORWARD meta ibrname \"br0\" accept'");
    CHECK(dropping_chains(ruleset("inet", "drop", Json::array()), "br0", both)[0].to_add ==
          "nft 'insert rule inet filter FORWARD iifname \"br0\" oifname \"br0\" accept'");
}

TEST_CASE("Docker's and ufw's rules get the command of their tool") {
    const std::map<std::string, std::string> commands{
        {"DOCKER-USER", "iptables -I DOCKER-USER -i br0 -o br0 -j ACCEPT"},
        {"ufw-before-forward", "ufw route allow in on br0 out on br0"}};
    for (const auto& each : commands) {
        Json rules = ruleset("ip", "drop", Json::array());
        rules["nftables"].push_back(
            {{"chain", {{"family", "ip"}, {"table", "filter"}, {"name", each.first}}}});
        CHECK(dropping_chains(rules, "br0", both).at(0).to_add == each.second);
    }
}

TEST_CASE("rules before the end of a chain count, and those behind it do not") {
    const Json jump{{"jump", {{"target", "OTHER"}}}};
    const Json mine = rule("FORWARD", {match("iifname", "br0"), accept});
    const Json others = rule("FORWARD", {match("iifname", "br1"), accept});
    const Json end = rule("FORWARD", {counter, drop});
    CHECK(dropping("accept", {}).empty());
    CHECK(dropping("accept", {end}).size() == 1);
    CHECK(dropping("accept", {mine, end}).empty());
    CHECK(dropping("accept", {end, mine}).size() == 1);
    CHECK_FALSE(dropping("accept", {end, mine})[0].may_accept);
    CHECK(dropping("drop", {others}).at(0).may_accept);
    CHECK(dropping("drop", {rule("FORWARD", {Json{{"xt", nullptr}}, accept})}).at(0).may_accept);
    CHECK(dropping("drop", {rule("FORWARD", {counter, jump})}).size() == 1);
    CHECK(dropping(
              "drop",
              {rule("FORWARD", {counter, jump}), rule("OTHER", {match("iifname", "br0"), accept})})
              .empty());
    CHECK(dropping("drop",
                   {rule("FORWARD", {match("iifname", "br1"), jump}),
                    rule("OTHER", {match("iifname", "br0"), accept})})
              .at(0)
              .may_accept);
    CHECK(dropping("drop", {rule("FORWARD", {match("iifname", "br1"), drop})}).size() == 1);
}

TEST_CASE("what is no ruleset is an error, and what is odd in one is not") {
    for (const Json& text : {Json(), Json(5), Json::object(), Json{{"nftables", 1}}}) {
        CHECK_THROWS_AS(dropping_chains(text, "br0", both), Error);
    }
    const Json odd{{"nftables",
                    {1,
                     Json::array(),
                     {{"chain", 5}},
                     {{"rule", nullptr}},
                     {{"rule", {{"expr", {{{"match", 3}}, 7}}}}}}}};
    CHECK(dropping_chains(odd, "br0", both).empty());
}
