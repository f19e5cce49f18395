// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdio>
#include <string>

#include <fmt/format.h>

namespace drover::tunnel {

// On stderr; nothing is thrown where that can't be written: a full disk, a reader that has gone.
inline void log_line(const std::string& tunnel, const std::string& text) {
    const std::string line = fmt::format("drover-tunnel: {}: {}\n", tunnel, text);
    std::fwrite(line.data(), 1, line.size(), stderr);
}

} // namespace drover::tunnel
