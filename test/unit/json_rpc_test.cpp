// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/json_rpc.h"

#include <limits>

#include <doctest/doctest.h>

using namespace drover;
using rpc::Json;

namespace {

rpc::Request request_of(std::string_view line) {
    return std::get<rpc::Request>(rpc::parse(line));
}
rpc::Response response_of(std::string_view line) {
    return std::get<rpc::Response>(rpc::parse(line));
}
std::string line_of(const std::string& serialized) {
    REQUIRE(!serialized.empty());
    CHECK(serialized.find('\n') == serialized.size() - 1);
    return serialized.substr(0, serialized.size() - 1);
}

} // namespace

TEST_CASE("a request goes there and back") {
    const rpc::Request request{7, "fence", Json{{"quiesce", "q\n1"}, {"n", 18446744073709551615u}}};
    const rpc::Request back = request_of(line_of(rpc::serialize(request)));
    CHECK((back.id == 7));
    CHECK(back.method == "fence");
    CHECK((back.params == request.params));
}

TEST_CASE("a notification has no id, and params may be left out") {
    CHECK(rpc::serialize(rpc::Request{nullptr, "status"}).find("id") == std::string::npos);
    const rpc::Request back = request_of(R"({"jsonrpc":"2.0","method":"status"})");
    CHECK(back.id.is_null());
    CHECK((back.params == Json::object()));
}

TEST_CASE("a result goes there and back") {
    const rpc::Response back =
        response_of(line_of(rpc::serialize(rpc::Response{"a", Json{{"ok", true}}, std::nullopt})));
    CHECK((back.id == "a"));
    CHECK(!back.error);
    CHECK((back.result == Json{{"ok", true}}));
}

TEST_CASE("an error keeps its kind and text") {
    for (const ErrorKind kind : {ErrorKind::usage,
                                 ErrorKind::state,
                                 ErrorKind::io,
                                 ErrorKind::peer,
                                 ErrorKind::timeout,
                                 ErrorKind::cancelled,
                                 ErrorKind::refused}) {
        const rpc::Response back = response_of(
            line_of(rpc::serialize(rpc::Response{1, Json(), Error(kind, "no: \"why\"")})));
        REQUIRE(back.error);
        CHECK((back.error->kind() == kind));
        CHECK(std::string(back.error->what()) == "no: \"why\"");
    }
    CHECK((response_of(R"({"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"m"}})")
               .error->kind() == ErrorKind::usage));
    CHECK((response_of(R"({"jsonrpc":"2.0","id":1,"error":{"code":99,"message":"m"}})")
               .error->kind() == ErrorKind::peer));
}

TEST_CASE("text that is not UTF-8 does not stop an answer") {
    const std::string line =
        line_of(rpc::serialize(rpc::Response{1, Json(), Error(ErrorKind::io, "a\xff.img: gone")}));
    CHECK(std::string(response_of(line).error->what()).find(".img: gone") != std::string::npos);
}

TEST_CASE("what is no message is refused as one") {
    for (const char* line : {"",
                             "x",
                             "[]",
                             "1",
                             "{}",
                             R"({"jsonrpc":"1.0","method":"m"})",
                             R"({"jsonrpc":2.0,"method":"m"})",
                             R"({"jsonrpc":"2.0"})",
                             R"({"jsonrpc":"2.0","method":1})",
                             R"({"jsonrpc":"2.0","method":"m","params":[1]})",
                             R"({"jsonrpc":"2.0","method":"m","params":null})",
                             R"({"jsonrpc":"2.0","id":{},"method":"m"})",
                             R"({"jsonrpc":"2.0","id":1.5,"method":"m"})",
                             R"({"jsonrpc":"2.0","id":1,"error":"e"})",
                             R"({"jsonrpc":"2.0","id":1,"error":{"code":"x","message":"m"}})",
                             R"({"jsonrpc":"2.0","id":1,"error":{"code":1}})",
                             R"({"jsonrpc":"2.0","method":"m"} x)"}) {
        CAPTURE(line);
        try {
            rpc::parse(line);
            FAIL_CHECK("taken as a message");
        } catch (const Error& error) {
            CHECK((error.kind() == ErrorKind::usage));
        }
    }
}

TEST_CASE("lines are found however the bytes are cut") {
    const std::string bytes = "one\n\ntwo three\nfour";
    for (size_t piece = 1; piece <= bytes.size(); ++piece) {
        rpc::LineBuffer buffer;
        std::vector<std::string> lines;
        for (size_t at = 0; at < bytes.size(); at += piece) {
            buffer.append(std::string_view(bytes).substr(at, piece));
            while (auto line = buffer.next()) {
                lines.push_back(*line);
            }
        }
        CHECK((lines == std::vector<std::string>{"one", "", "two three"}));
        buffer.append("\n");
        CHECK(buffer.next() == "four");
        CHECK(!buffer.next());
    }
}

TEST_CASE("a line without an end is refused before it fills the memory") {
    rpc::LineBuffer buffer;
    const std::string piece(64 * 1024, 'x');
    for (size_t i = 0; i < rpc::max_line_bytes / piece.size(); ++i) {
        buffer.append(piece);
        CHECK(!buffer.next());
    }
    CHECK_THROWS_AS(buffer.append("x"), Error);

    rpc::LineBuffer many; // many short lines at once are fine
    std::string lines;
    while (lines.size() <= rpc::max_line_bytes) {
        lines += "short\n";
    }
    CHECK_NOTHROW(many.append(lines));
    CHECK(many.next() == "short");
}

TEST_CASE("parameters are read strictly") {
    const Json params{{"text", "t"},
                      {"number", std::numeric_limits<uint64_t>::max()},
                      {"flag", true},
                      {"negative", -1},
                      {"real", 1.0},
                      {"none", nullptr}};
    CHECK(rpc::string_param(params, "text") == "t");
    CHECK(rpc::uint_param(params, "number") == std::numeric_limits<uint64_t>::max());
    CHECK(rpc::bool_param(params, "flag", false));
    CHECK(rpc::bool_param(params, "missing", true));
    CHECK(!rpc::optional_string_param(params, "missing"));
    CHECK(!rpc::optional_uint_param(params, "none"));
    CHECK_THROWS_WITH(rpc::string_param(params, "missing"), doctest::Contains("'missing'"));
    CHECK_THROWS_WITH(rpc::uint_param(params, "text"), doctest::Contains("'text'"));
    CHECK_THROWS_AS(rpc::uint_param(params, "negative"), Error);
    CHECK_THROWS_AS(rpc::uint_param(params, "real"), Error);
    CHECK_THROWS_AS(rpc::string_param(params, "number"), Error);
    CHECK_THROWS_AS(rpc::bool_param(params, "number", true), Error);
    CHECK_NOTHROW(rpc::only_params(Json{{"a", 1}}, {"a", "b"}));
    CHECK_THROWS_WITH(rpc::only_params(Json{{"a", 1}, {"c", 1}}, {"a", "b"}),
                      doctest::Contains("'c'"));
}

TEST_CASE("a peer does not choose how deep a message is nested") {
    const auto nested = [](size_t depth, const char* key) {
        return fmt::format(R"({{"jsonrpc":"2.0","id":1,"{}":{}{}}})",
                           key,
                           std::string(depth, '['),
                           std::string(depth, ']'));
    };
    CHECK((response_of(nested(20, "result")).result.is_array()));
    for (const size_t depth : {size_t{100}, rpc::max_line_bytes / 2 - 100}) {
        for (const char* const key : {"params", "result", "error", "id", "anything"}) {
            CHECK_THROWS_AS(rpc::parse(nested(depth, key)), Error);
            CHECK_THROWS_AS(rpc::parse(nested(depth, key).substr(0, depth)), Error);
        }
    }
}
