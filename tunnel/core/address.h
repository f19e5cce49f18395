// SPDX-License-Identifier: GPL-2.0-or-later
// MAC and IP addresses as values. Pure; any thread.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace drover::tunnel {

using Bytes = std::span<const uint8_t>;
using Frame = std::vector<uint8_t>; // an Ethernet frame without its check sequence

struct Mac {
    std::array<uint8_t, 6> bytes{};
    auto operator<=>(const Mac&) const = default;

    bool is_group() const { return (bytes[0] & 1) != 0; } // multicast or broadcast
    static constexpr Mac broadcast() { return {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}; }
};

// IPv4 is in the first 4 bytes, the rest zero.
struct Ip {
    uint8_t version = 4; // or 6
    std::array<uint8_t, 16> bytes{};
    auto operator<=>(const Ip&) const = default;

    size_t size() const { return version == 4 ? 4 : 16; }
    Bytes span() const { return {bytes.data(), size()}; }
    bool is_link_local() const { // fe80::/10
        return version == 6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
    }
    bool is_unspecified() const { return bytes == std::array<uint8_t, 16>{}; }
};

// An address of the VM with the length of its network's prefix: 10.1.0.10/24.
struct Prefix {
    Ip address;
    uint8_t length = 0;
    auto operator<=>(const Prefix&) const = default;

    bool covers(const Ip& other) const;
};

// nullopt for anything else than "02:00:00:00:00:10" in either case.
std::optional<Mac> parse_mac(std::string_view text);
// Numeric only; no zone. nullopt otherwise.
std::optional<Ip> parse_ip(std::string_view text);
// "ADDRESS/LENGTH"; nullopt also for a length that does not fit.
std::optional<Prefix> parse_prefix(std::string_view text);

std::string to_text(const Mac& mac);
std::string to_text(const Ip& ip);
std::string to_text(const Prefix& prefix);

} // namespace drover::tunnel
