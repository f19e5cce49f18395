// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/address.h"

#include <charconv>

#include <fmt/format.h>

#include <arpa/inet.h>

namespace drover::tunnel {

bool Prefix::covers(const Ip& other) const {
    if (other.version != address.version) {
        return false;
    }
    const size_t whole = length / 8;
    for (size_t i = 0; i < whole; ++i) {
        if (other.bytes[i] != address.bytes[i]) {
            return false;
        }
    }
    const int rest = length % 8;
    return rest == 0 || ((other.bytes[whole] ^ address.bytes[whole]) >> (8 - rest)) == 0;
}

std::optional<Mac> parse_mac(std::string_view text) {
    if (text.size() != 17) {
        return std::nullopt;
    }
    Mac mac;
    for (size_t i = 0; i < 6; ++i) {
        const char* const digits = text.data() + 3 * i;
        const auto [end, error] = std::from_chars(digits, digits + 2, mac.bytes[i], 16);
        if (error != std::errc{} || end != digits + 2 || (i < 5 && *end != ':')) {
            return std::nullopt;
        }
    }
    return mac;
}

std::optional<Ip> parse_ip(std::string_view text) {
    const std::string terminated(text);
    Ip ip;
    if (::inet_pton(AF_INET, terminated.c_str(), ip.bytes.data()) == 1) {
        return ip;
    }
    ip.version = 6;
    if (::inet_pton(AF_INET6, terminated.c_str(), ip.bytes.data()) == 1) {
        return ip;
    }
    return std::nullopt;
}

std::optional<Prefix> parse_prefix(std::string_view text) {
    const size_t slash = text.find('/');
    if (slash == std::string_view::npos) {
        return std::nullopt;
    }
    const auto address = parse_ip(text.substr(0, slash));
    const std::string_view digits = text.substr(slash + 1);
    Prefix prefix;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), prefix.length);
    if (!address || error != std::errc{} || end != digits.data() + digits.size() ||
        prefix.length > 8 * address->size()) {
        return std::nullopt;
    }
    prefix.address = *address;
    return prefix;
}

std::string to_text(const Mac& mac) {
    return fmt::format("{:02x}", fmt::join(mac.bytes, ":"));
}

std::string to_text(const Ip& ip) {
    char text[INET6_ADDRSTRLEN] = "";
    ::inet_ntop(ip.version == 4 ? AF_INET : AF_INET6, ip.bytes.data(), text, sizeof text);
    return text;
}

std::string to_text(const Prefix& prefix) {
    return fmt::format("{}/{}", to_text(prefix.address), prefix.length);
}

} // namespace drover::tunnel
