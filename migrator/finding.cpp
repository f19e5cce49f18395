// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/finding.h"

#include <array>

#include <fmt/format.h>

namespace drover {
namespace {

constexpr std::array<std::string_view, 4> names{"ok", "note", "warning", "problem"};

} // namespace

std::string_view level_name(Level level) {
    return names.at(static_cast<size_t>(level));
}

std::optional<Level> parse_level(std::string_view name) {
    for (size_t i = 0; i < names.size(); ++i) {
        if (names[i] == name) {
            return static_cast<Level>(i);
        }
    }
    return std::nullopt;
}

nlohmann::json finding_json(const Finding& finding) {
    return {{"level", level_name(finding.level)},
            {"about", finding.about},
            {"text", finding.text},
            {"advice", finding.advice}};
}

std::string finding_line(const std::string& where, const Finding& finding) {
    return fmt::format("{:<8} {}: {}: {}{}{}",
                       level_name(finding.level),
                       where,
                       finding.about,
                       finding.text,
                       finding.advice.empty() ? "" : ". To do: ",
                       finding.advice);
}

} // namespace drover
