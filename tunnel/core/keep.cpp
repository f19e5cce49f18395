// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/keep.h"

#include <charconv>

#include <fmt/format.h>

namespace drover::tunnel {

std::optional<uint64_t> parse_duration_ms(std::string_view text) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
    const uint64_t seconds = unit.empty() || unit == "s" ? 1
                             : unit == "m"               ? 60
                             : unit == "h"               ? 3600
                             : unit == "d"               ? 86400
                                                         : 0;
    constexpr uint64_t most = 10'000'000'000; // more than any duration of use, in any unit
    if (error != std::errc{} || seconds == 0 || value > most) {
        return std::nullopt;
    }
    return value * seconds * 1000;
}

std::optional<Keep> parse_keep(std::string_view text) {
    if (text == "until-idle") {
        return Keep{};
    }
    if (text == "forever") {
        return Keep{Keep::Until::forever, 0, 0};
    }
    const auto time_ms = parse_duration_ms(text);
    return time_ms ? std::optional(Keep{Keep::Until::time, *time_ms, 0}) : std::nullopt;
}

std::string reason_to_end(const Keep& keep, uint64_t flows, uint64_t since_ms) {
    switch (keep.until) {
    case Keep::Until::forever:
        return "";
    case Keep::Until::time:
        return since_ms >= keep.time_ms
                   ? fmt::format("its time of {} s is over", keep.time_ms / 1000)
                   : "";
    case Keep::Until::idle:
        return since_ms >= keep.at_least_ms && flows == 0 ? "no flow to an old address is left"
                                                          : "";
    }
    return "";
}

} // namespace drover::tunnel
