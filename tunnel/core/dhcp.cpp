// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/dhcp.h"

#include "tunnel/core/packet.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr size_t header_size = 236;
constexpr uint32_t magic_cookie = 0x63825363;
constexpr uint8_t pad = 0, requested_ip = 50, message_type = 53, end = 255;

Ip ip_at(const uint8_t* at) {
    Ip ip;
    std::copy_n(at, 4, ip.bytes.begin());
    return ip;
}

} // namespace

std::optional<DhcpMessage> parse_dhcp(Bytes payload) {
    constexpr size_t options = header_size + 4;
    if (payload.size() < options || get32(payload.data() + header_size) != magic_cookie) {
        return std::nullopt;
    }
    const uint8_t operation = payload[0], hardware = payload[1], hardware_length = payload[2];
    if ((operation != 1 && operation != 2) || hardware != 1 || hardware_length != 6) {
        return std::nullopt;
    }
    DhcpMessage message;
    message.from_client = operation == 1;
    message.client_ip = ip_at(payload.data() + 12);
    message.your_ip = ip_at(payload.data() + 16);
    std::copy_n(payload.begin() + 28, message.client.bytes.size(), message.client.bytes.begin());
    for (size_t at = options; at < payload.size() && payload[at] != end;) {
        if (payload[at] == pad) {
            ++at;
            continue;
        }
        if (at + 2 > payload.size() || at + 2 + payload[at + 1] > payload.size()) {
            return std::nullopt;
        }
        const uint8_t length = payload[at + 1];
        if (payload[at] == message_type && length == 1) {
            message.type = payload[at + 2];
        } else if (payload[at] == requested_ip && length == 4) {
            message.requested = ip_at(payload.data() + at + 2);
        }
        at += size_t{2} + length;
    }
    return message;
}

} // namespace drover::tunnel
