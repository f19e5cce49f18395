// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_params.h"
#include "migrator/peer_agent.h"

#include <doctest/doctest.h>

using namespace drover;
using rpc::Json;

TEST_CASE("agent: keys and ids are so many lower-case digits") {
    CHECK(hex_param(Json{{"key", "0af9"}}, "key", 4) == "0af9");
    for (const Json& bad :
         {Json("0af"), Json("0AF9"), Json("0ag9"), Json("0af90"), Json(4), Json()}) {
        CHECK_THROWS_WITH(hex_param(Json{{"key", bad}}, "key", 4), doctest::Contains("'key'"));
    }
}

TEST_CASE("agent: names of disks are names") {
    const NamedDisks named = named_disks_param(Json{{"vm", "vm1"}, {"disks", {"root", "data"}}});
    CHECK(named.vm == "vm1");
    CHECK(named.disks == std::vector<std::string>{"root", "data"});
    for (const char* const bad : {"", "..", "../root", "a/b", "a\nb", ".hidden"}) {
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", bad}, {"disks", Json::array()}}), Error);
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", "vm1"}, {"disks", {"root", bad}}}), Error);
    }
    for (const Json& bad :
         {Json(), Json("root"), Json::object(), Json{1}, Json{{{"name", "root"}}}}) {
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", "vm1"}, {"disks", bad}}), Error);
    }
}

TEST_CASE("an agent's answer that leaves a disk out is no answer") {
    const Json list{{{"name", "root"}, {"port", 1}}, 7, {{"name", 5}}};
    CHECK((named(list, "root").at("port") == 1));
    for (const Json& bad : {list, Json::array(), Json(), Json("data"), Json{{"data", 1}}}) {
        CHECK_THROWS_WITH(named(bad, "data"), doctest::Contains("data"));
    }
}
