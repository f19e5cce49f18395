// SPDX-License-Identifier: GPL-2.0-or-later
// Sizes, ranges of bytes, and the numbers that must not be mixed up.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace drover {

inline constexpr uint64_t KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB, TiB = 1024 * GiB;

// An extent: bytes [offset, offset + length) of a disk.
struct Extent {
    uint64_t offset = 0;
    uint64_t length = 0;

    constexpr uint64_t end() const { return offset + length; }
    constexpr bool overlaps(const Extent& other) const {
        return offset < other.end() && other.offset < end();
    }
    constexpr bool operator==(const Extent&) const = default;
};

// Log sequence number: counts the operations of one stream from 1; 0 is "before the first".
// Meaningless outside its stream.
struct Lsn {
    uint64_t v = 0;
    constexpr Lsn() = default;
    constexpr explicit Lsn(uint64_t value) : v(value) {}
    constexpr auto operator<=>(const Lsn&) const = default;
};

constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
    return (value + unit - 1) / unit * unit;
}

// "64K", "1M", "2G", "4096": binary multiples, an optional "iB" or "B" behind the letter.
// Nothing else around it; nullopt if it is not such a size or does not fit.
std::optional<uint64_t> parse_size(std::string_view text);

// "1.5 GiB": for people.
std::string format_size(uint64_t bytes);

}  // namespace drover
