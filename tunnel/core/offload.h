// SPDX-License-Identifier: GPL-2.0-or-later
// Large TCP packets, which a network interface takes and gives whole: cut to what a datagram takes,
// and joined again on the other side (segmentation and receive offload). Pure; each object on one
// thread at a time.
#pragma once

#include "tunnel/core/packet.h"

namespace drover::tunnel {

// What is still to be done to a frame, as a TAP device says it (struct virtio_net_hdr, which C++
// can't include). All zero: nothing.
struct Offload {
    static constexpr uint8_t begun = 1;                         // the checksum
    static constexpr uint8_t uncut = 0, tcp_v4 = 1, tcp_v6 = 4; // how it is to be cut
    uint8_t flags = 0, kind = uncut;
    uint16_t headers = 0;    // up to the data
    uint16_t segment = 0;    // data of each packet
    uint16_t sum_from = 0;   // what the checksum is of, up to the end
    uint16_t sum_offset = 0; // and where behind that it is
};
static_assert(sizeof(Offload) == 10);

// If that is to be done, and its place is in the frame.
void complete_checksum(std::span<uint8_t> frame, const Offload& offload);

class TcpCutter {
public:
    // packet(bytes) for each TCP packet, with right checksums, that carries at most `segment` bytes
    // and is in a frame of at most `most`; the bytes are valid during the call. False, before any
    // call: it is no whole TCP packet, or its headers leave no room.
    template <class Packet>
    bool cut(Bytes frame, const Parsed& parsed, size_t segment, size_t most, Packet packet) {
        if (!begin(frame, parsed, segment, most)) {
            return false;
        }
        for (size_t at = headers_; at < parsed.ip->end; at += segment_) {
            packet(part(frame, *parsed.ip, at));
        }
        return true;
    }

private:
    bool begin(Bytes frame, const Parsed& parsed, size_t segment, size_t most);
    Bytes part(Bytes frame, const IpPacket& ip, size_t at);

    size_t headers_ = 0, segment_ = 0;
    std::vector<uint8_t> buffer_;
};

// Of packets that follow each other only those are joined that a receiver could not tell from the
// parts of one: of one connection, each beginning where the last one ends, all but the last of
// one size, with the same words in their headers and right checksums. Nothing is overtaken.
class TcpJoiner {
public:
    // out(bytes, offload) for what is ready: maybe not yet the one that is added. The bytes are
    // valid during the call.
    template <class Out>
    void add(Bytes frame, const Parsed& parsed, Out out) {
        const size_t data = data_of(frame, parsed);
        if (data != 0 && follows(frame, *parsed.ip, data)) {
            append(frame, *parsed.ip, data);
            return;
        }
        flush(out);
        if (data != 0) {
            start(frame, *parsed.ip, data);
        } else {
            out(frame, Offload{});
        }
    }
    // What is left.
    template <class Out>
    void flush(Out out) {
        if (packets_ != 0) {
            const Offload offload = finish();
            packets_ = 0;
            out(Bytes(buffer_), offload);
        }
    }

private:
    // Where it begins; 0: not one to be joined.
    static size_t data_of(Bytes frame, const Parsed& parsed);
    bool follows(Bytes frame, const IpPacket& ip, size_t data) const;
    void start(Bytes frame, const IpPacket& ip, size_t data);
    void append(Bytes frame, const IpPacket& ip, size_t data);
    Offload finish();

    std::vector<uint8_t> buffer_;
    IpPacket ip_; // of the first one
    size_t packets_ = 0, headers_ = 0, segment_ = 0;
    uint32_t next_ = 0; // sequence number
    bool open_ = false; // the last one was of full size, and without PSH
};

} // namespace drover::tunnel
