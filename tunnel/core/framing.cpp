// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/framing.h"

#include <algorithm>

namespace drover::tunnel {
namespace {

constexpr uint8_t type_ping = 1, type_pong = 2, type_frame = 3, type_piece = 4;
constexpr size_t piece_header = 8, least_frame = 14, most_pieces = 255;

uint32_t little32(const uint8_t* at) {
    return static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8 |
           static_cast<uint32_t>(at[2]) << 16 | static_cast<uint32_t>(at[3]) << 24;
}

void put_little32(uint8_t* at, uint32_t value) {
    for (int i = 0; i < 4; ++i) {
        at[i] = static_cast<uint8_t>(value >> 8 * i);
    }
}

std::optional<Record> parse_ping(Bytes bytes) {
    if (bytes.size() < ping_size || bytes[1] != wire_version ||
        bytes[2] > static_cast<uint8_t>(last_phase) || bytes[3] != 0) {
        return std::nullopt;
    }
    Ping ping;
    ping.answer = bytes[0] == type_pong;
    ping.phase = static_cast<Phase>(bytes[2]);
    ping.id = little32(bytes.data() + 4);
    std::copy_n(bytes.data() + 8, ping.identity.size(), ping.identity.begin());
    return ping;
}

std::optional<Record> parse_piece(Bytes bytes) {
    if (bytes.size() <= piece_header || bytes[3] != 0) {
        return std::nullopt;
    }
    const Piece piece{little32(bytes.data() + 4), bytes[1], bytes[2], bytes.subspan(piece_header)};
    if (piece.count < 2 || piece.index >= piece.count) {
        return std::nullopt;
    }
    return piece;
}

} // namespace

std::optional<Record> parse_record(Bytes bytes) {
    if (bytes.empty()) {
        return std::nullopt;
    }
    switch (bytes[0]) {
    case type_ping:
    case type_pong:
        return parse_ping(bytes);
    case type_frame:
        return bytes.size() > least_frame && bytes.size() - 1 <= largest_frame
                   ? std::optional<Record>(WholeFrame{bytes.subspan(1)})
                   : std::nullopt;
    case type_piece:
        return parse_piece(bytes);
    default:
        return std::nullopt;
    }
}

std::vector<uint8_t> ping_record(const Ping& ping, size_t size) {
    std::vector<uint8_t> bytes(std::max(size, ping_size));
    bytes[0] = ping.answer ? type_pong : type_ping;
    bytes[1] = wire_version;
    bytes[2] = static_cast<uint8_t>(ping.phase);
    put_little32(bytes.data() + 4, ping.id);
    std::copy(ping.identity.begin(), ping.identity.end(), bytes.begin() + 8);
    return bytes;
}

size_t Splitter::pieces(size_t frame, size_t room) {
    const size_t count = (frame + room - piece_header - 1) / (room - piece_header);
    return frame > largest_frame || count > most_pieces ? 0 : count;
}

void Splitter::whole(Bytes frame) {
    buffer_.resize(1 + frame.size());
    buffer_[0] = type_frame;
    std::copy(frame.begin(), frame.end(), buffer_.begin() + 1);
}

// Pieces of the same size, give or take a byte: the small one of two is lost as often as a large
// one. The larger one of two comes first, so that they go out together.
void Splitter::piece(Bytes frame, size_t count, size_t index) {
    const auto from = [&](size_t i) { return (frame.size() * i + count - 1) / count; };
    const Bytes part = frame.subspan(from(index), from(index + 1) - from(index));
    buffer_.resize(piece_header + part.size());
    buffer_[0] = type_piece;
    buffer_[1] = static_cast<uint8_t>(index);
    buffer_[2] = static_cast<uint8_t>(count);
    buffer_[3] = 0;
    put_little32(buffer_.data() + 4, id_);
    std::copy(part.begin(), part.end(), buffer_.begin() + piece_header);
}

void Joiner::drop_oldest() {
    bytes_ -= frames_.front().bytes;
    frames_.pop_front();
    ++dropped_;
}

std::optional<Frame> Joiner::add(const Piece& piece, uint64_t session) {
    auto found = std::find_if(frames_.begin(), frames_.end(), [&](const Unfinished& frame) {
        return frame.session == session && frame.id == piece.id;
    });
    if (found != frames_.end() && found->pieces.size() != piece.count) {
        bytes_ -= found->bytes; // a peer that does not know its frames
        frames_.erase(found);
        ++dropped_;
        found = frames_.end();
    }
    if (found == frames_.end()) {
        if (frames_.size() == most_frames) {
            drop_oldest();
        }
        frames_.push_back({session, piece.id, piece.count, 0, std::vector<Frame>(piece.count)});
        found = std::prev(frames_.end());
    }
    Frame& part = found->pieces[piece.index];
    if (!part.empty()) {
        return std::nullopt; // seen
    }
    part.assign(piece.bytes.begin(), piece.bytes.end());
    found->bytes += part.size();
    bytes_ += part.size();
    if (--found->missing == 0) {
        Frame whole;
        whole.reserve(found->bytes);
        for (const Frame& each : found->pieces) {
            whole.insert(whole.end(), each.begin(), each.end());
        }
        bytes_ -= found->bytes;
        frames_.erase(found);
        if (whole.size() < least_frame || whole.size() > largest_frame) {
            ++dropped_;
            return std::nullopt;
        }
        return whole;
    }
    while (bytes_ > most_bytes) {
        drop_oldest();
    }
    return std::nullopt;
}

} // namespace drover::tunnel
