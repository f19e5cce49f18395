// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/offload.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr size_t ipv4_header = 20, ipv6_header = 40, tcp_header = 20, tcp_checksum = 16;
constexpr size_t largest_packet = 65535, most_joined = 64;

// Offsets of IPv4.
constexpr size_t v4_length = 2, v4_id = 4, v4_flags = 6, v4_checksum = 10;
constexpr uint8_t v4_dont_fragment = 0x40;
constexpr size_t v6_length = 4;

// The offset of a TCP packet's data; 0: it is none, or not whole.
size_t tcp_data(Bytes frame, const Parsed& parsed) {
    if (!parsed.ip || parsed.ip->protocol != ip_tcp || !parsed.ip->has_ports ||
        parsed.ip->fragment) {
        return 0;
    }
    const size_t header = size_t{4} * (frame[parsed.ip->payload + 12] >> 4);
    const size_t data = parsed.ip->payload + header;
    return header < tcp_header || data > parsed.ip->end ? 0 : data;
}

// Of the sum that TCP's checksum is of, what is not in the packet.
uint32_t pseudo_sum(const IpPacket& ip, size_t size) {
    return sum_words(ip.destination.span(), sum_words(ip.source.span())) + ip_tcp +
           static_cast<uint32_t>(size);
}

// The packet is in `frame` up to its end now, behind the same headers as `ip`.
void set_length(std::span<uint8_t> frame, const IpPacket& ip) {
    uint8_t* const header = frame.data() + ip.header;
    if (ip.source.version == 6) {
        put16(header + v6_length, static_cast<uint16_t>(frame.size() - ip.header - ipv6_header));
        return;
    }
    put16(header + v4_length, static_cast<uint16_t>(frame.size() - ip.header));
    put16(header + v4_checksum, 0);
    put16(header + v4_checksum, folded_checksum(sum_words(Bytes(header, ip.payload - ip.header))));
}

bool same(Bytes a, Bytes b, size_t from, size_t to) {
    return std::equal(a.begin() + from, a.begin() + to, b.begin() + from);
}

} // namespace

void complete_checksum(std::span<uint8_t> frame, const Offload& offload) {
    const size_t at = size_t{offload.sum_from} + offload.sum_offset;
    if ((offload.flags & Offload::begun) == 0 || at + 2 > frame.size()) {
        return;
    }
    const uint16_t checksum = folded_checksum(sum_words(frame.subspan(offload.sum_from)));
    put16(frame.data() + at, checksum != 0 ? checksum : 0xffff); // 0 is none, in UDP
}

bool TcpCutter::begin(Bytes frame, const Parsed& parsed, size_t segment, size_t most) {
    headers_ = tcp_data(frame, parsed);
    segment_ = headers_ != 0 && headers_ < most ? std::min(segment, most - headers_) : 0;
    if (segment_ == 0) {
        return false;
    }
    buffer_.assign(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(headers_));
    return true;
}

Bytes TcpCutter::part(Bytes frame, const IpPacket& ip, size_t at) {
    const size_t size = std::min(segment_, ip.end - at);
    const bool first = at == headers_, last = at + size == ip.end;
    buffer_.resize(headers_);
    buffer_.insert(buffer_.end(), frame.begin() + at, frame.begin() + at + size);
    if (ip.source.version == 4) {
        const auto number = static_cast<uint16_t>((at - headers_) / segment_);
        put16(buffer_.data() + ip.header + v4_id,
              static_cast<uint16_t>(get16(frame.data() + ip.header + v4_id) + number));
    }
    set_length(buffer_, ip);
    uint8_t* const tcp = buffer_.data() + ip.payload;
    put32(tcp + 4, get32(frame.data() + ip.payload + 4) + static_cast<uint32_t>(at - headers_));
    tcp[13] = ip.tcp_flags;
    if (!first) {
        tcp[13] &= static_cast<uint8_t>(~tcp_flag::cwr);
    }
    if (!last) {
        tcp[13] &= static_cast<uint8_t>(~(tcp_flag::fin | tcp_flag::psh));
    }
    put16(tcp + tcp_checksum, 0);
    const Bytes payload = Bytes(buffer_).subspan(ip.payload);
    put16(tcp + tcp_checksum, folded_checksum(sum_words(payload, pseudo_sum(ip, payload.size()))));
    return buffer_;
}

size_t TcpJoiner::data_of(Bytes frame, const Parsed& parsed) {
    const size_t data = tcp_data(frame, parsed);
    if (data == 0 || data == parsed.ip->end || parsed.ip->end != frame.size()) {
        return 0;
    }
    const IpPacket& ip = *parsed.ip;
    const bool plain =
        ip.source.version == 4
            ? ip.payload == ip.header + ipv4_header &&
                  (frame[ip.header + v4_flags] & v4_dont_fragment) != 0 &&
                  folded_checksum(sum_words(frame.subspan(ip.header, ipv4_header))) == 0
            : ip.payload == ip.header + ipv6_header;
    const Bytes payload = frame.subspan(ip.payload, ip.end - ip.payload);
    const bool joins = plain && (ip.tcp_flags & ~tcp_flag::psh) == tcp_flag::ack &&
                       folded_checksum(sum_words(payload, pseudo_sum(ip, payload.size()))) == 0;
    return joins ? data : 0;
}

bool TcpJoiner::follows(Bytes frame, const IpPacket& ip, size_t data) const {
    const size_t size = ip.end - data;
    const size_t tcp = ip_.payload;
    if (packets_ == 0 || packets_ == most_joined || !open_ || data != headers_ ||
        ip.payload != tcp || size > segment_ ||
        buffer_.size() - ip.header + size > largest_packet ||
        get32(frame.data() + tcp + 4) != next_) {
        return false;
    }
    const bool same_ip =
        ip.source.version == 4
            ? same(frame, buffer_, 0, ip.header + v4_length) &&
                  same(frame, buffer_, ip.header + v4_flags, ip.header + v4_checksum) &&
                  same(frame, buffer_, ip.header + v4_checksum + 2, tcp)
            : same(frame, buffer_, 0, ip.header + v6_length) &&
                  same(frame, buffer_, ip.header + v6_length + 2, tcp);
    // All but the sequence number, the flag PSH and the checksum.
    return same_ip && same(frame, buffer_, tcp, tcp + 4) &&
           same(frame, buffer_, tcp + 8, tcp + 13) &&
           same(frame, buffer_, tcp + 14, tcp + tcp_checksum) &&
           same(frame, buffer_, tcp + tcp_checksum + 2, headers_);
}

void TcpJoiner::start(Bytes frame, const IpPacket& ip, size_t data) {
    buffer_.assign(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(data));
    ip_ = ip;
    headers_ = data;
    segment_ = ip.end - data;
    next_ = get32(frame.data() + ip.payload + 4);
    append(frame, ip, data);
}

void TcpJoiner::append(Bytes frame, const IpPacket& ip, size_t data) {
    const size_t size = ip.end - data;
    buffer_.insert(buffer_.end(), frame.begin() + data, frame.begin() + ip.end);
    buffer_[ip.payload + 13] |= ip.tcp_flags;
    next_ += static_cast<uint32_t>(size);
    open_ = size == segment_ && (ip.tcp_flags & tcp_flag::psh) == 0;
    ++packets_;
}

Offload TcpJoiner::finish() {
    Offload offload{};
    if (packets_ == 1) {
        return offload;
    }
    set_length(buffer_, ip_);
    const size_t tcp_size = buffer_.size() - ip_.payload;
    // The taker completes it: what it is begun with is not inverted.
    put16(buffer_.data() + ip_.payload + tcp_checksum,
          static_cast<uint16_t>(~folded_checksum(pseudo_sum(ip_, tcp_size))));
    offload.flags = Offload::begun;
    offload.kind = ip_.source.version == 4 ? Offload::tcp_v4 : Offload::tcp_v6;
    offload.headers = static_cast<uint16_t>(headers_);
    offload.segment = static_cast<uint16_t>(segment_);
    offload.sum_from = static_cast<uint16_t>(ip_.payload);
    offload.sum_offset = tcp_checksum;
    return offload;
}

} // namespace drover::tunnel
