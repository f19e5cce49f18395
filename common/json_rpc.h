// SPDX-License-Identifier: GPL-2.0-or-later
// JSON-RPC 2.0, one message a line: the bytes-to-messages half, without any
// I/O. The plugin's control socket, `drover ctl` and the agent's stdio speak
// it (docs/control.md).
#pragma once

#include "common/error.h"

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace drover::rpc {

using Json = nlohmann::json;

// A line longer than this ends the connection: a peer can't make us buffer more.
inline constexpr size_t max_line_bytes = 1 << 20;

struct Request {
    Json id;  // null: a notification, which gets no response
    std::string method;
    Json params = Json::object();
};

struct Response {
    Json id;
    Json result;                                                    // set where error is empty
    std::optional<Error> error;
};

using Message = std::variant<Request, Response>;

// A line without its newline, to a message. Throws Error(usage) if it is none;
// the text says what is wrong with it.
Message parse(std::string_view line);

// To lines, the newline included.
std::string serialize(const Request& request);
std::string serialize(const Response& response);

// Splits a byte stream into lines.
class LineBuffer {
public:
    // Throws Error(peer) once an unfinished line is longer than max_line_bytes.
    void append(std::string_view bytes);
    std::optional<std::string> next();

private:
    std::string pending_;
    size_t scanned_ = 0;  // no newline before this
};

// Reading parameters strictly: each throws Error(usage) that names the key and
// what was expected.
std::string string_param(const Json& params, const char* key);
uint64_t uint_param(const Json& params, const char* key);
bool bool_param(const Json& params, const char* key, bool fallback);
std::optional<std::string> optional_string_param(const Json& params, const char* key);
std::optional<uint64_t> optional_uint_param(const Json& params, const char* key);
// Throws Error(usage) if params has a key outside `allowed`.
void only_params(const Json& params, std::initializer_list<std::string_view> allowed);

}  // namespace drover::rpc
