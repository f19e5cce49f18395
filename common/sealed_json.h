// SPDX-License-Identifier: GPL-2.0-or-later
// A line that shows whether it is whole: a checksum, a blank and a JSON object. Of journals and
// state files. Pure; any thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace drover {

inline constexpr size_t sealed_checksum_digits = 32;

// The first digits of the text's SHA-256, in lower-case hexadecimal.
std::string seal_of(std::string_view text);
// With its newline. Bytes that are no UTF-8 are replaced.
std::string sealed(const nlohmann::json& json);
// Of a line without its newline; nullopt if the checksum is wrong or it is no object.
std::optional<nlohmann::json> unsealed(std::string_view line);

} // namespace drover
