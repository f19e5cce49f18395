// SPDX-License-Identifier: GPL-2.0-or-later
// What a DTLS record holds (docs/wire-format.md, "tunnel"): a frame, a piece of one that does not
// fit into a datagram, a ping or its answer. Pure; each object on one thread at a time.
#pragma once

#include "tunnel/core/address.h"

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <variant>

namespace drover::tunnel {

inline constexpr uint8_t wire_version = 1;
inline constexpr size_t largest_frame = 65535 + 14;

// How far an end is; each ping and pong says it.
enum class Phase : uint8_t {
    ready = 0,     // home: the VM is here; away: frames to it are kept
    diverted = 1,  // home: the VM's frames go across
    resumed = 2,   // away: frames to the VM are delivered
    returning = 3, // home: asks for what is kept to come back
    returned = 4,  // away: all that was kept has been sent back
    closing = 5,   // both are to take down what they put up
};
inline constexpr Phase last_phase = Phase::closing;

struct Ping {
    bool answer = false; // a pong: with the id of the ping
    Phase phase = Phase::ready;
    uint32_t id = 0;
    std::array<uint8_t, 16> identity{}; // of the NIC: both ends must mean the same
    bool operator==(const Ping&) const = default;
};
inline constexpr size_t ping_size = 24; // without padding

struct WholeFrame {
    Bytes frame; // within the record
};

struct Piece {
    uint32_t id = 0;              // of the frame
    uint8_t index = 0, count = 0; // count 2 or more
    Bytes bytes;
};

using Record = std::variant<Ping, WholeFrame, Piece>;

// nullopt for what is none of these. What it gives points into `bytes`.
std::optional<Record> parse_record(Bytes bytes);

// `size`: padded with zeroes up to it, to try a path's MTU. At least ping_size.
std::vector<uint8_t> ping_record(const Ping& ping, size_t size = ping_size);

// The records of a frame, none larger than `room` (at least 64). Calls record(bytes) for each; the
// bytes are valid during the call. A frame larger than largest_frame has none.
class Splitter {
public:
    template <class Record>
    void split(Bytes frame, size_t room, Record record) {
        if (frame.size() + 1 <= room) {
            whole(frame);
            record(Bytes(buffer_));
            return;
        }
        const size_t count = pieces(frame.size(), room);
        for (size_t i = 0; i < count; ++i) {
            piece(frame, count, i);
            record(Bytes(buffer_));
        }
        ++id_;
    }

private:
    static size_t pieces(size_t frame, size_t room); // 0: too large
    void whole(Bytes frame);
    void piece(Bytes frame, size_t count, size_t index);

    std::vector<uint8_t> buffer_;
    uint32_t id_ = 0;
};

// Puts the pieces of a frame together again, which come by one session, in whichever order. Keeps
// at most `most_frames` unfinished ones and `most_bytes` in all; the oldest one goes first.
class Joiner {
public:
    static constexpr size_t most_frames = 64, most_bytes = 1 << 20;

    // The frame, once its last piece has come.
    std::optional<Frame> add(const Piece& piece, uint64_t session);
    uint64_t dropped() const { return dropped_; } // frames that were never finished
    size_t unfinished() const { return frames_.size(); }

private:
    struct Unfinished {
        uint64_t session = 0;
        uint32_t id = 0;
        size_t missing = 0, bytes = 0;
        std::vector<Frame> pieces;
    };
    void drop_oldest();

    std::list<Unfinished> frames_; // the oldest one first
    size_t bytes_ = 0;
    uint64_t dropped_ = 0;
};

} // namespace drover::tunnel
