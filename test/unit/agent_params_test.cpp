// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_params.h"

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
    REQUIRE(named.disks.size() == 2);
    CHECK((named.disks[0].name == "root" && named.disks[0].uuid.empty()));
    CHECK(named.disks[1].name == "data");
    const Json identified{{"vm", "vm1"}, {"disks", {{{"name", "root"}, {"uuid", "u"}}}}};
    CHECK(named_disks_param(identified, true).disks.at(0).uuid == "u");
    for (const Json& bad : {Json("root"), Json(1), Json{{"name", "root"}}, Json{{"uuid", "u"}}}) {
        const Json disks{{"vm", "vm1"}, {"disks", Json::array({bad})}};
        CHECK_THROWS_AS(named_disks_param(disks, true), Error);
    }
    for (const char* const bad : {"", "..", "../root", "a/b", "a\nb", ".hidden"}) {
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", bad}, {"disks", Json::array()}}), Error);
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", "vm1"}, {"disks", {"root", bad}}}), Error);
    }
    for (const Json& bad :
         {Json(), Json("root"), Json::object(), Json{1}, Json{{{"name", "root"}}}}) {
        CHECK_THROWS_AS(named_disks_param(Json{{"vm", "vm1"}, {"disks", bad}}), Error);
    }
}

TEST_CASE("agent: what a survey is told of the disks is bytes by name") {
    CHECK(used_param(Json::object()).empty());
    CHECK(used_param(Json::parse(R"({"used": {"root": 7}})")).at("root") == 7);
    for (const char* const bad : {R"({"used": 5})",
                                  R"({"used": [5]})",
                                  R"({"used": "root"})",
                                  R"({"used": {"root": -1}})",
                                  R"({"used": {"root": "7"}})",
                                  R"({"used": {"root": 7, "data": 1.5}})"}) {
        CHECK_THROWS_WITH(used_param(Json::parse(bad)), doctest::Contains("'used'"));
    }
}

TEST_CASE("agent: how long it waits for its coordinator is what that says, within bounds") {
    CHECK(patience_param(nullptr) == longest_silence);
    CHECK(patience_param(rpc::Json::object()) == longest_silence);
    CHECK(patience_param({{"patience_s", 5U}}) == longest_silence);
    CHECK(patience_param({{"patience_s", -5}}) == longest_silence);
    CHECK(patience_param({{"patience_s", "600"}}) == longest_silence);
    CHECK(patience_param({{"patience_s", 600U}}) == std::chrono::seconds(600));
    CHECK(patience_param({{"patience_s", UINT64_MAX}}) == longest_patience);
}
