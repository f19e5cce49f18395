// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <limits>

namespace drover {

std::optional<uint64_t> parse_size(std::string_view text) {
    uint64_t number = 0;
    const char* const last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, number);
    if (error != std::errc{}) {
        return std::nullopt;
    }
    std::string_view unit(end, static_cast<size_t>(last - end));
    if (unit.empty() || unit == "B") {
        return number;
    }
    constexpr std::string_view letters = "KMGTPE";
    const char letter = unit[0] >= 'a' && unit[0] <= 'z' ? static_cast<char>(unit[0] - 'a' + 'A') : unit[0];
    const size_t power = letters.find(letter);
    unit.remove_prefix(1);
    if (power == std::string_view::npos || !(unit.empty() || unit == "B" || unit == "iB")) {
        return std::nullopt;
    }
    const unsigned shift = 10 * (static_cast<unsigned>(power) + 1);
    if (number > std::numeric_limits<uint64_t>::max() >> shift) {
        return std::nullopt;
    }
    return number << shift;
}

std::string format_size(uint64_t bytes) {
    constexpr std::array units{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = static_cast<double>(bytes);
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < units.size()) {
        value /= 1024;
        ++unit;
    }
    return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace drover
