// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/json_rpc.h"

#include <algorithm>

namespace drover::rpc {
namespace {

// Of a message's objects and arrays in each other. What is nested is copied and written recursively:
// a peer must not choose how deep.
constexpr int max_depth = 32;

[[noreturn]] void bad(const std::string& what) { throw Error(ErrorKind::usage, what); }

ErrorKind kind_of(int code) {
    switch (code) {
    case 1: return ErrorKind::state;
    case 2: return ErrorKind::io;
    case 4: return ErrorKind::timeout;
    case 5: return ErrorKind::cancelled;
    case 6: return ErrorKind::refused;
    case -32602:
    case -32601:
    case -32600:
    case -32700: return ErrorKind::usage;
    default: return ErrorKind::peer;
    }
}

const Json* find(const Json& params, const char* key) {
    const auto it = params.find(key);
    return it == params.end() || it->is_null() ? nullptr : &*it;
}

}  // namespace

Message parse(std::string_view line) {
    const auto shallow = [](int depth, Json::parse_event_t, const Json&) {
        if (depth > max_depth) {
            bad("nested too deeply");
        }
        return true;
    };
    const Json message = Json::parse(line, shallow, false);
    if (!message.is_object()) {
        bad("not a JSON object");
    }
    if (message.value("jsonrpc", Json()) != "2.0") {
        bad("not JSON-RPC: \"jsonrpc\" must be \"2.0\"");
    }
    const Json id = message.value("id", Json());
    if (!id.is_null() && !id.is_number_integer() && !id.is_string()) {
        bad("\"id\" must be a number or a string");
    }
    if (message.contains("method")) {
        if (!message["method"].is_string()) {
            bad("\"method\" must be a string");
        }
        Request request{id, message["method"].get<std::string>(), message.value("params", Json::object())};
        if (!request.params.is_object()) {
            bad("\"params\" must be an object");
        }
        return request;
    }
    Response response{id, Json(), std::nullopt};
    if (message.contains("result")) {
        response.result = message["result"];
        return response;
    }
    const Json error = message.value("error", Json());
    if (!error.is_object() || !error.value("code", Json()).is_number_integer() ||
        !error.value("message", Json()).is_string()) {
        bad("neither a method, a result nor an error");
    }
    response.error = Error(kind_of(error["code"].get<int>()), error["message"].get<std::string>());
    return response;
}

// Text from a path or an errno may hold any bytes: replaced, not thrown over.
static std::string line_of(const Json& message) {
    return message.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string serialize(const Request& request) {
    Json message{{"jsonrpc", "2.0"}, {"method", request.method}, {"params", request.params}};
    if (!request.id.is_null()) {
        message["id"] = request.id;
    }
    return line_of(message);
}

std::string serialize(const Response& response) {
    Json message{{"jsonrpc", "2.0"}, {"id", response.id}};
    if (response.error) {
        message["error"] = Json{{"code", static_cast<int>(response.error->kind())}, {"message", response.error->what()}};
    } else {
        message["result"] = response.result;
    }
    return line_of(message);
}

void LineBuffer::append(std::string_view bytes) {
    pending_.append(bytes);
    if (pending_.size() > max_line_bytes && pending_.find('\n', scanned_) == std::string::npos) {
        throw Error(ErrorKind::peer, "a message of over 1 MiB: not the protocol of a control socket");
    }
}

std::optional<std::string> LineBuffer::next() {
    const size_t newline = pending_.find('\n', scanned_);
    if (newline == std::string::npos) {
        scanned_ = pending_.size();
        return std::nullopt;
    }
    std::string line = pending_.substr(0, newline);
    pending_.erase(0, newline + 1);
    scanned_ = 0;
    return line;
}

std::string string_param(const Json& params, const char* key) {
    auto value = optional_string_param(params, key);
    if (!value) {
        bad(fmt::format("parameter '{}' is missing: a string is expected", key));
    }
    return *std::move(value);
}

uint64_t uint_param(const Json& params, const char* key) {
    const auto value = optional_uint_param(params, key);
    if (!value) {
        bad(fmt::format("parameter '{}' is missing: a number is expected", key));
    }
    return *value;
}

bool bool_param(const Json& params, const char* key, bool fallback) {
    const Json* value = find(params, key);
    if (value == nullptr) {
        return fallback;
    }
    if (!value->is_boolean()) {
        bad(fmt::format("parameter '{}': true or false is expected", key));
    }
    return value->get<bool>();
}

std::optional<std::string> optional_string_param(const Json& params, const char* key) {
    const Json* value = find(params, key);
    if (value == nullptr) {
        return std::nullopt;
    }
    if (!value->is_string()) {
        bad(fmt::format("parameter '{}': a string is expected", key));
    }
    return value->get<std::string>();
}

std::optional<uint64_t> optional_uint_param(const Json& params, const char* key) {
    const Json* value = find(params, key);
    if (value == nullptr) {
        return std::nullopt;
    }
    if (!value->is_number_unsigned()) {
        bad(fmt::format("parameter '{}': a number that is not negative is expected", key));
    }
    return value->get<uint64_t>();
}

void only_params(const Json& params, std::initializer_list<std::string_view> allowed) {
    for (const auto& [key, value] : params.items()) {
        if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) {
            bad(fmt::format("unknown parameter '{}'", key));
        }
    }
}

}  // namespace drover::rpc
