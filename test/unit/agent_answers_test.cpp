// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_answers.h"

#include <doctest/doctest.h>

using namespace drover;
using rpc::Json;

namespace {

const std::string key(64, 'a');

Json standing(const std::string& name) {
    return {{"name", name},
            {"role", "replica"},
            {"stage", "receiving"},
            {"generation", 3},
            {"migration", "m"},
            {"may_have_run", false}};
}

// As it comes from a line: small numbers in our braces would be signed ones.
Json said(const Json& answer) {
    return Json::parse(answer.dump());
}

ErrorKind kind_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        return error.kind();
    }
    return ErrorKind::io; // what no reader throws
}

// What a value may be replaced by.
const std::vector<Json> lies{nullptr,
                             true,
                             -1,
                             0,
                             1.5,
                             UINT64_MAX,
                             "",
                             "x\ny",
                             std::string(100000, 'a'),
                             Json::array(),
                             Json::object(),
                             Json{{{"name", 5}}}};

// Each value of a good answer, replaced by each lie or left out, is read or is an Error(peer).
void tell_lies(const Json& good, const std::function<void(const Json&)>& read) {
    read(said(good));
    const Json flat = good.flatten();
    std::vector<std::string> paths{""};
    for (const auto& [path, value] : flat.items()) {
        for (size_t end = path.size(); end != 0 && end != std::string::npos;
             end = path.rfind('/', end - 1)) {
            paths.push_back(path.substr(0, end));
        }
    }
    for (const std::string& path : paths) {
        for (const Json& lie : lies) {
            Json answer = good;
            answer[Json::json_pointer(path)] = lie;
            CAPTURE(answer.dump().substr(0, 300));
            try {
                read(said(answer));
            } catch (const Error& error) {
                const bool expected =
                    error.kind() == ErrorKind::peer || error.kind() == ErrorKind::refused;
                CHECK(expected);
            }
        }
    }
}

} // namespace

TEST_CASE("an agent's answer that leaves a disk out is no answer") {
    const Json root = standing("root");
    const DiskNames both{"root", "data"};
    for (const Json& list : {Json{root}, Json::array(), Json(), Json("data"), Json{{"data", 1}}}) {
        CHECK_THROWS_WITH_AS(read_standings({{"disks", list}}, "take_over", both),
                             doctest::Contains("take_over"),
                             Error);
    }
    CHECK_THROWS_WITH(read_standings(said({{"disks", {root}}}), "take_over", both),
                      doctest::Contains("disk data"));
}

TEST_CASE("lists come back in our order of the disks, not in the agent's") {
    Json first = standing("data"), second = standing("root");
    second["stage"] = "promoted";
    const auto found =
        read_standings(said({{"disks", {7, first, second, first}}}), "records", {"root", "data"});
    REQUIRE(found.size() == 2);
    CHECK(found[0].stage == Stage::promoted);
    CHECK(found[1].stage == Stage::receiving);
}

TEST_CASE("an agent that has prepared nothing has no refusal tokens") {
    const std::vector<std::string> none(2);
    CHECK((read_refuse(said({{"disks", Json::array()}}), {"root", "data"}) == none));
    CHECK(
        kind_of([] {
            read_refuse({{"disks", {{{"name", "root"}, {"refusal_token", ""}}}}}, {"root", "data"});
        }) == ErrorKind::peer);
}

TEST_CASE("a lying agent gets an Error(peer), whatever it answers") {
    const DiskNames disks{"root"};
    const Json port{{"name", "root"},
                    {"port", 10809},
                    {"psk_user", "forward-1"},
                    {"psk_key", key},
                    {"refusal_hash", key},
                    {"empty", false}};
    tell_lies({{"disks", {standing("root")}}},
              [&](const Json& answer) { read_standings(answer, "take_over", disks); });
    tell_lies({{"disks", {{{"name", "root"}, {"refusal_token", key}}}}},
              [&](const Json& answer) { read_refuse(answer, disks); });
    tell_lies({{"disks", {port}}, {"memory", {{"port", 1}, {"psk_user", "u"}}}},
              [&](const Json& answer) { read_prepare(answer, disks, true); });
    tell_lies({{"disks", {port}}}, [&](const Json& answer) { read_forward_key(answer, disks); });
    tell_lies({{"disks", {port}}}, [&](const Json& answer) { read_hashes(answer, disks); });
    tell_lies({{"port", 1}, {"psk_user", "u"}},
              [](const Json& answer) { read_memory_again(answer); });
    tell_lies({{"generation", 1}}, [&](const Json& answer) { read_check(answer, 1); });
    tell_lies(
        {{"findings", {{{"level", "problem"}, {"about", "a"}, {"text", "b"}, {"advice", "c"}}}},
         {"at_home", false},
         {"kvm", true},
         {"cpu", {{"model", "m"}, {"flags", {"sse"}}}}},
        [](const Json& answer) { read_survey(answer); });
    tell_lies({{"tcp", {1, 2}}, {"udp", {3}}},
              [](const Json& answer) { read_probe(answer, 2, 1); });
    tell_lies({{"version", 2}, {"program_version", "1"}},
              [&](const Json& answer) { read_hello(answer, 2, "b"); });
}

TEST_CASE("a key's user is one word, and a port is none that nothing listens at") {
    const auto read = [](const Json& port, const Json& user) {
        const Json disk{{"name", "root"}, {"port", port}, {"psk_user", user}};
        return read_hashes(said({{"disks", {disk}}}), {"root"}).at(0);
    };
    CHECK(read(1, "a-B_9.") == DataPort{1, "a-B_9."});
    for (const char* const user : {"", "a:b", "a\nroot:00", "a b", "\xc3\xa9"}) {
        CHECK(kind_of([&] { read(1, user); }) == ErrorKind::peer);
    }
    for (const Json& port : {Json(0), Json(65536), Json(-1), Json("1")}) {
        CHECK(kind_of([&] { read(port, "u"); }) == ErrorKind::peer);
    }
}

TEST_CASE("a peer can't use up the generations") {
    CHECK(read_check(said({{"generation", 7}}), 3) == 7);
    CHECK(kind_of([] { read_check({{"generation", UINT64_MAX}}, 3); }) == ErrorKind::peer);
    Json far = standing("root");
    far["generation"] = UINT64_MAX;
    CHECK(kind_of([&] {
              read_standings({{"disks", {far}}}, "records", {"root"});
          }) == ErrorKind::peer);
}

TEST_CASE("another protocol is refused") {
    CHECK(kind_of([] {
              read_hello({{"version", 3}, {"program_version", 5}}, 2, "b");
          }) == ErrorKind::refused);
}

TEST_CASE("notices: only text, of a known level, and nothing that a terminal obeys") {
    for (const Json& params : {Json::object(), Json{{"text", 5}, {"level", {1}}, {"detail", {}}}}) {
        const AgentNotice log = read_notice({nullptr, "log", params});
        CHECK(log.kind == AgentNotice::Kind::log);
        CHECK(log.level == "info");
        CHECK(log.text.empty());
        CHECK(read_notice({nullptr, "event", params}).kind == AgentNotice::Kind::event);
        CHECK(read_notice({nullptr, "other", params}).kind == AgentNotice::Kind::none);
    }
    const Json params{{"level", "error"}, {"text", "a\x1b[2Jb\nc\xc2\x9b\xc3\xa9"}};
    CHECK(read_notice({nullptr, "log", params}).text == "a [2Jb c  \xc3\xa9");
    CHECK(read_notice({nullptr, "log", params}).level == "error");
    CHECK(printable(std::string(1999, 'a') + "\xc3\xa9") == std::string(1999, 'a') + "...");
}

TEST_CASE(
    "what another side finds of itself is shown as text, and no more of it than can be read") {
    Json survey{{"findings",
                 {{{"level", "warning"},
                   {"about", "im\x1b[2Jages"},
                   {"text", "a\nproblem  here"},
                   {"advice", ""}}}},
                {"at_home", true},
                {"kvm", false},
                {"cpu", {{"model", "m\x07"}, {"flags", {"sse", 5, std::string(41, 'x')}}}}};
    const Survey read = read_survey(said(survey));
    CHECK(read.findings.at(0) == Finding{Level::warning, "im [2Jages", "a problem  here", ""});
    CHECK(read.at_home);
    CHECK_FALSE(read.kvm);
    CHECK(read.cpu.model == "m ");
    CHECK((read.cpu.flags == std::set<std::string>{"sse"}));
    const Json one = survey["findings"][0];
    survey["findings"] = Json(101, one);
    CHECK(kind_of([&] { read_survey(said(survey)); }) == ErrorKind::peer);
    survey["findings"] = Json(100, one);
    CHECK(read_survey(said(survey)).findings.size() == 100);
    survey["findings"][99]["level"] = "fatal";
    CHECK(kind_of([&] { read_survey(said(survey)); }) == ErrorKind::peer);
}

TEST_CASE("ports that were not asked for are none") {
    for (const Json& ports :
         {Json::array(), Json{1}, Json{1, 2, 3}, Json{0, 2}, Json{1, 65536}, Json{1, "2"}}) {
        CHECK(kind_of([&] {
                  read_probe(said({{"tcp", ports}, {"udp", Json::array()}}), 2, 0);
              }) == ErrorKind::peer);
    }
    CHECK((read_probe(said({{"tcp", {9, 8}}, {"udp", {7}}}), 2, 1).tcp ==
           std::vector<uint16_t>{9, 8}));
}
