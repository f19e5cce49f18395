// SPDX-License-Identifier: GPL-2.0-or-later
// What `drover check` says of one thing, at either side. Pure; any thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// In their order: what is right; what is good to know, or could not be looked at; what may go
// wrong; what a migration would fail by.
enum class Level { ok, note, warning, problem };
std::string_view level_name(Level level);
std::optional<Level> parse_level(std::string_view name);

struct Finding {
    Level level = Level::ok;
    std::string about;  // "disk root", "ports": a few words
    std::string text;   // what it is
    std::string advice; // what to do, as it can be typed; may be empty, or part of the text
    bool operator==(const Finding&) const = default;
};
using Findings = std::vector<Finding>;

// {"level", "about", "text", "advice"}
nlohmann::json finding_json(const Finding& finding);
// For people, without a newline. where: "here", or the other host.
std::string finding_line(const std::string& where, const Finding& finding);

} // namespace drover
