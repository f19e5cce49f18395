// SPDX-License-Identifier: GPL-2.0-or-later
// The frames of the stream, bytes to values and back; docs/wire-format.md has
// the layout byte by byte. Pure: nothing here waits, allocates much, or trusts
// what it reads.
#pragma once

#include "common/units.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace drover {

using MigrationId = std::array<std::byte, 16>;
using TokenHash = std::array<std::byte, 32>;

// 32 lower-case hexadecimal digits; nullopt for anything else.
std::optional<MigrationId> parse_migration_id(const std::string& hex);
std::string to_string(const MigrationId& id);

// Which stream, and which connect of it. Ordered: a destination takes only a
// larger one than it has seen.
struct StreamId {
    uint64_t generation = 0;
    uint64_t counter = 0; // of the source, durable
    uint64_t session = 0;
    auto operator<=>(const StreamId&) const = default;
};

enum class OpType : uint8_t {
    write = 1,
    zero = 2,
    trim = 3,  // zero that may punch
    flush = 4, // a flush of the guest
    fill = 5,  // post-copy
    consistent = 6,
    inconsistent = 7,
    handover = 8, // data: the token's hash
    void_ = 9,    // takes the last handover back
};

constexpr bool has_data(OpType type) {
    return type == OpType::write || type == OpType::fill || type == OpType::handover;
}
// Comes after the LSN just before it, whatever it overlaps.
constexpr bool is_mark(OpType type) {
    return type != OpType::write && type != OpType::zero && type != OpType::trim &&
           type != OpType::fill;
}

struct Op {
    OpType type{};
    Extent where; // handover: offset 0, length of its data; other marks: empty
    bool operator==(const Op&) const = default;
};

struct FrameHeader {
    MigrationId migration{};
    StreamId stream;
    Lsn first, next;         // the operations' LSNs: [first, next)
    Lsn after;               // applied once the watermark has reached this
    bool open = false;       // first frame of a connection: joins the session; no operations
    std::optional<Lsn> base; // the new watermark of the session; only in an open frame
};

inline constexpr uint16_t wire_version = 1;
inline constexpr size_t frame_header_size = 112;
inline constexpr size_t frame_op_size = 24;
inline constexpr size_t max_frame_ops = 1024;
inline constexpr size_t max_frame_data = 4 * MiB;

constexpr size_t frame_prefix_size(size_t ops) {
    return frame_header_size + ops * frame_op_size;
}

// Writes header, table and checksum into frame[0, frame_prefix_size(ops.size())); the data of
// the operations must stand behind them already, up to the end of the span. raw_length: of that
// data, where what stands there is coded (nbd-proxy/frame_codec.h); 0: it is not.
void encode_frame(std::span<std::byte> frame,
                  const FrameHeader& header,
                  std::span<const Op> ops,
                  uint32_t raw_length = 0);

struct DecodedFrame {
    FrameHeader header;
    std::vector<Op> ops;
    std::span<const std::byte> data; // into what was decoded: of all operations, in order
    uint32_t raw_length = 0;         // of the data, where it is coded; 0: it is not
};

// Checks everything that can be checked without the disk's state: magic, version, checksum,
// lengths, types, and that every operation lies within disk_size. nullopt and *why otherwise.
std::optional<DecodedFrame>
decode_frame(std::span<const std::byte> frame, uint64_t disk_size, std::string* why);

// The answer of the `state` export.
struct ReplicaState {
    std::array<std::byte, 16> uuid{}, boot{}, instance{};
    MigrationId migration{};
    uint64_t size = 0, block_size = 0, generation = 0;
    StreamId stream;
    Lsn applied, durable;
};

inline constexpr size_t state_size = 512;
std::array<std::byte, state_size> encode_state(const ReplicaState& state);
std::optional<ReplicaState> decode_state(std::span<const std::byte> bytes, std::string* why);

} // namespace drover
