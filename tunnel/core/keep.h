// SPDX-License-Identifier: GPL-2.0-or-later
// How long the tunnel stays after the VM has left. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace drover::tunnel {

struct Keep {
    enum class Until { idle, time, forever };
    Until until = Until::idle;
    uint64_t time_ms = 0;     // `time`: so long
    uint64_t at_least_ms = 0; // `idle`: not before, as the DNS may still give the old address
};

// "30s", "10m", "12h", "2d"; a bare number is seconds. nullopt for anything else.
std::optional<uint64_t> parse_duration_ms(std::string_view text);
// "until-idle", "forever", or a duration.
std::optional<Keep> parse_keep(std::string_view text);

// Why the tunnel may be taken down: "" if not. `flows`: that are live; `since_ms`: the VM left.
std::string reason_to_end(const Keep& keep, uint64_t flows, uint64_t since_ms);

} // namespace drover::tunnel
