// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/frame.h"

#include "nbd-proxy/core/checksum.h"

#include <bit>

#include <fmt/format.h>

namespace drover {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the wire is little-endian and so are the hosts that we support");

constexpr uint32_t frame_magic = 0x46565244; // "DRVF"
constexpr uint32_t state_magic = 0x53565244; // "DRVS"
constexpr uint8_t codec_none = 0, codec_zstd = 1;
constexpr uint8_t flag_open = 1, flag_base = 2;
// The checksum stands first and covers everything behind it, in one piece.
constexpr size_t checksum_size = sizeof(Hash128);

// Both ways over a fixed buffer; the caller knows that it is large enough.
class Writer {
public:
    explicit Writer(std::byte* to) : to_(to) {}
    template <typename T>
    void put(const T& value) {
        std::memcpy(to_, &value, sizeof value);
        to_ += sizeof value;
    }

private:
    std::byte* to_;
};

class Reader {
public:
    explicit Reader(const std::byte* from) : from_(from) {}
    template <typename T>
    T get() {
        T value;
        std::memcpy(&value, from_, sizeof value);
        from_ += sizeof value;
        return value;
    }

private:
    const std::byte* from_;
};

template <typename Result>
Result fail(std::string* why, std::string text) {
    *why = std::move(text);
    return std::nullopt;
}

void put_stream(Writer& out, const StreamId& stream) {
    out.put(stream.generation);
    out.put(stream.counter);
    out.put(stream.session);
}

StreamId get_stream(Reader& in) {
    StreamId stream;
    stream.generation = in.get<uint64_t>();
    stream.counter = in.get<uint64_t>();
    stream.session = in.get<uint64_t>();
    return stream;
}

} // namespace

std::optional<MigrationId> parse_migration_id(const std::string& hex) {
    constexpr std::string_view digits = "0123456789abcdef";
    MigrationId id;
    if (hex.size() != 2 * id.size()) {
        return std::nullopt;
    }
    for (size_t i = 0; i < id.size(); ++i) {
        const size_t high = digits.find(hex[2 * i]), low = digits.find(hex[2 * i + 1]);
        if (high == std::string_view::npos || low == std::string_view::npos) {
            return std::nullopt;
        }
        id[i] = static_cast<std::byte>(high << 4 | low);
    }
    return id;
}

std::string to_string(const MigrationId& id) {
    std::string hex;
    for (const std::byte b : id) {
        hex += fmt::format("{:02x}", static_cast<unsigned>(b));
    }
    return hex;
}

void encode_frame(std::span<std::byte> frame,
                  const FrameHeader& header,
                  std::span<const Op> ops,
                  uint32_t raw_length) {
    const auto data_length = static_cast<uint32_t>(frame.size() - frame_prefix_size(ops.size()));
    Writer out(frame.data() + checksum_size);
    out.put(frame_magic);
    out.put(wire_version);
    out.put(raw_length == 0 ? codec_none : codec_zstd);
    out.put(static_cast<uint8_t>((header.open ? flag_open : 0) | (header.base ? flag_base : 0)));
    out.put(header.migration);
    put_stream(out, header.stream);
    out.put(header.first.v);
    out.put(header.next.v);
    out.put(header.after.v);
    out.put(header.base ? header.base->v : uint64_t{0});
    out.put(static_cast<uint32_t>(ops.size()));
    out.put(raw_length == 0 ? data_length : raw_length);
    out.put(data_length);
    out.put(uint32_t{0});
    for (const Op& op : ops) {
        out.put(op.where.offset);
        out.put(op.where.length);
        out.put(uint64_t{static_cast<uint8_t>(op.type)});
    }
    const Hash128 checksum = hash128(frame.data() + checksum_size, frame.size() - checksum_size);
    std::memcpy(frame.data(), &checksum, sizeof checksum);
}

std::optional<DecodedFrame>
decode_frame(std::span<const std::byte> frame, uint64_t disk_size, std::string* why) {
    using Result = std::optional<DecodedFrame>;
    if (frame.size() < frame_header_size) {
        return fail<Result>(why, "shorter than a frame's header");
    }
    Reader in(frame.data());
    const auto checksum = in.get<Hash128>();
    if (in.get<uint32_t>() != frame_magic) {
        return fail<Result>(why, "not a frame: wrong magic number");
    }
    if (const auto version = in.get<uint16_t>(); version != wire_version) {
        return fail<Result>(
            why,
            fmt::format("frame version {}, not {}: the two sides run different releases",
                        version,
                        wire_version));
    }
    if (checksum != hash128(frame.data() + checksum_size, frame.size() - checksum_size)) {
        return fail<Result>(why, "wrong checksum");
    }
    const auto codec = in.get<uint8_t>();
    if (codec != codec_none && codec != codec_zstd) {
        return fail<Result>(why, fmt::format("unknown codec {}", codec));
    }
    const auto flags = in.get<uint8_t>();
    DecodedFrame decoded;
    FrameHeader& header = decoded.header;
    header.open = (flags & flag_open) != 0;
    header.migration = in.get<MigrationId>();
    header.stream = get_stream(in);
    header.first = Lsn(in.get<uint64_t>());
    header.next = Lsn(in.get<uint64_t>());
    header.after = Lsn(in.get<uint64_t>());
    const Lsn base(in.get<uint64_t>());
    const auto count = in.get<uint32_t>();
    const auto raw_length = in.get<uint32_t>();
    const auto coded_length = in.get<uint32_t>();
    if (in.get<uint32_t>() != 0 || (flags & ~(flag_open | flag_base)) != 0) {
        return fail<Result>(why, "unknown flags");
    }
    // What does not shrink is not coded.
    const bool lengths = codec == codec_none ? coded_length == raw_length
                                             : coded_length > 0 && coded_length < raw_length;
    if (count > max_frame_ops || raw_length > max_frame_data || !lengths ||
        frame.size() != frame_prefix_size(count) + coded_length) {
        return fail<Result>(why, "lengths do not fit together");
    }
    if ((flags & flag_base) != 0) {
        header.base = base;
    }
    if (header.open) {
        if (count != 0 || raw_length != 0) {
            return fail<Result>(why, "operations in an open frame");
        }
        return decoded;
    }
    if (header.base || count == 0 || header.first.v == 0 ||
        header.next.v - header.first.v != count || header.next < header.first ||
        header.after >= header.first) {
        return fail<Result>(why, "LSNs do not fit together");
    }
    uint64_t data_length = 0;
    decoded.ops.reserve(count);
    for (uint32_t i = 0; i < count; ++i) {
        Op op;
        op.where.offset = in.get<uint64_t>();
        op.where.length = in.get<uint64_t>();
        const auto type = in.get<uint64_t>();
        if (type < static_cast<uint64_t>(OpType::write) ||
            type > static_cast<uint64_t>(OpType::void_)) {
            return fail<Result>(why, fmt::format("unknown operation {}", type));
        }
        op.type = static_cast<OpType>(type);
        if (op.type == OpType::handover ? op.where != Extent{0, sizeof(TokenHash)}
            : is_mark(op.type)          ? op.where != Extent{}
                                        : op.where.length == 0 || op.where.offset > disk_size ||
                                     op.where.length > disk_size - op.where.offset) {
            return fail<Result>(why,
                                fmt::format("operation {} at {}+{} is not within the disk",
                                            type,
                                            op.where.offset,
                                            op.where.length));
        }
        if (has_data(op.type)) {
            if (op.where.length > raw_length - data_length) {
                return fail<Result>(why, "more data in the table than in the frame");
            }
            data_length += op.where.length;
        }
        decoded.ops.push_back(op);
    }
    if (data_length != raw_length) {
        return fail<Result>(why, "the data is not as long as its operations say");
    }
    decoded.data = frame.subspan(frame_prefix_size(count));
    decoded.raw_length = codec == codec_none ? 0 : raw_length;
    return decoded;
}

std::array<std::byte, state_size> encode_state(const ReplicaState& state) {
    std::array<std::byte, state_size> bytes{};
    Writer out(bytes.data() + checksum_size);
    out.put(state_magic);
    out.put(wire_version);
    out.put(uint16_t{0});
    out.put(state.uuid);
    out.put(state.boot);
    out.put(state.instance);
    out.put(state.migration);
    out.put(state.size);
    out.put(state.block_size);
    out.put(state.generation);
    put_stream(out, state.stream);
    out.put(state.applied.v);
    out.put(state.durable.v);
    const Hash128 checksum = hash128(bytes.data() + checksum_size, state_size - checksum_size);
    std::memcpy(bytes.data(), &checksum, sizeof checksum);
    return bytes;
}

std::optional<ReplicaState> decode_state(std::span<const std::byte> bytes, std::string* why) {
    using Result = std::optional<ReplicaState>;
    if (bytes.size() != state_size) {
        return fail<Result>(why, "a state of the wrong length");
    }
    Reader in(bytes.data());
    if (in.get<Hash128>() != hash128(bytes.data() + checksum_size, state_size - checksum_size)) {
        return fail<Result>(why, "wrong checksum");
    }
    if (in.get<uint32_t>() != state_magic) {
        return fail<Result>(why, "not a state: wrong magic number");
    }
    if (const auto version = in.get<uint16_t>(); version != wire_version) {
        return fail<Result>(
            why,
            fmt::format("state version {}, not {}: the two sides run different releases",
                        version,
                        wire_version));
    }
    ReplicaState state;
    in.get<uint16_t>();
    state.uuid = in.get<std::array<std::byte, 16>>();
    state.boot = in.get<std::array<std::byte, 16>>();
    state.instance = in.get<std::array<std::byte, 16>>();
    state.migration = in.get<MigrationId>();
    state.size = in.get<uint64_t>();
    state.block_size = in.get<uint64_t>();
    state.generation = in.get<uint64_t>();
    state.stream = get_stream(in);
    state.applied = Lsn(in.get<uint64_t>());
    state.durable = Lsn(in.get<uint64_t>());
    if (state.durable > state.applied) {
        return fail<Result>(why, "durable is above applied");
    }
    return state;
}

} // namespace drover
