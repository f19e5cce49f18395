// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/put_up.h"

#include "common/error.h"
#include "common/sealed_json.h"

namespace drover::tunnel {
namespace {

using nlohmann::json;

constexpr std::string_view magic = "drover-tunnel";
constexpr int version = 1;

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. It says which rules of nft are to be "
                            "removed (`nft list tables netdev`: drover_...); remove them by hand "
                            "and then this file",
                            name,
                            why));
}

std::string text_of(const json& object, const char* key, const std::string& name) {
    const json value = object.value(key, json());
    if (!value.is_string()) {
        refuse(name, fmt::format("damaged ('{}' is missing)", key));
    }
    return value.get<std::string>();
}

// Nothing that would be more than a name in a rule.
bool is_table(const std::string& text) {
    return text.starts_with("drover_") &&
           text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
}

} // namespace

std::string put_up_text(const PutUp& put_up) {
    return sealed(json{{"format", magic},
                       {"version", version},
                       {"tunnel", put_up.tunnel},
                       {"role", put_up.role == Role::home ? "home" : "away"},
                       {"identity", put_up.identity},
                       {"at", put_up.at},
                       {"table", put_up.table},
                       {"switched", put_up.switched},
                       {"port", put_up.port},
                       {"port_state", put_up.port_state}});
}

PutUp parse_put_up(std::string_view bytes, const std::string& name) {
    if (bytes.empty() || bytes.back() != '\n') {
        refuse(name, "damaged (it does not end with its line)");
    }
    const auto object = unsealed(bytes.substr(0, bytes.size() - 1));
    if (!object) {
        refuse(name, "damaged, or not of drover (the checksum is wrong)");
    }
    if (object->value("format", json()) != magic) {
        refuse(name, "not the state of a tunnel of drover");
    }
    if (const json found = object->value("version", json()); found != version) {
        refuse(name,
               fmt::format("of format {}, this drover-tunnel knows format {}: use the one that "
                           "wrote it",
                           found.dump(-1, ' ', false, json::error_handler_t::replace),
                           version));
    }
    PutUp put_up;
    put_up.tunnel = text_of(*object, "tunnel", name);
    const std::string role = text_of(*object, "role", name);
    if (role != "home" && role != "away") {
        refuse(name, "damaged (its role)");
    }
    put_up.role = role == "home" ? Role::home : Role::away;
    put_up.identity = text_of(*object, "identity", name);
    put_up.at = text_of(*object, "at", name);
    put_up.table = text_of(*object, "table", name);
    const json switched = object->value("switched", json());
    if (!switched.is_boolean() || (!put_up.table.empty() && !is_table(put_up.table))) {
        refuse(name, "damaged");
    }
    put_up.switched = switched.get<bool>();
    put_up.port = text_of(*object, "port", name);
    const json port_state = object->value("port_state", json());
    if (!port_state.is_number_unsigned() || port_state.get<uint64_t>() > UINT16_MAX) {
        refuse(name, "damaged");
    }
    put_up.port_state = port_state.get<uint16_t>();
    return put_up;
}

} // namespace drover::tunnel
