// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/sealed_json.h"

#include "common/secrets.h"

namespace drover {

using nlohmann::json;

std::string seal_of(std::string_view text) {
    return sha256_hex(text).substr(0, sealed_checksum_digits);
}

std::string sealed(const json& object) {
    const std::string text = object.dump(-1, ' ', false, json::error_handler_t::replace);
    return seal_of(text) + " " + text + "\n";
}

std::optional<json> unsealed(std::string_view line) {
    if (line.size() <= sealed_checksum_digits || line[sealed_checksum_digits] != ' ') {
        return std::nullopt;
    }
    const std::string_view text = line.substr(sealed_checksum_digits + 1);
    if (seal_of(text) != line.substr(0, sealed_checksum_digits)) {
        return std::nullopt;
    }
    json object = json::parse(text, nullptr, false);
    return object.is_object() ? std::optional(std::move(object)) : std::nullopt;
}

} // namespace drover
