// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as a frame, or as an answer of the `state` export: refused with a reason, or
// what it says is possible and is the same when encoded again. The first byte: bit 0 puts the
// right checksum in, bit 1 takes the bytes as a state.
#include "nbd-proxy/core/checksum.h"
#include "nbd-proxy/core/frame.h"
#include "nbd-proxy/frame_codec.h"
#include "test/fuzz/check.h"

using namespace drover;

namespace {

constexpr uint64_t disk_size = 1 * GiB + 511;
constexpr size_t checksum_size = 16;

void seal(std::vector<std::byte>& bytes) {
    if (bytes.size() > checksum_size) {
        const Hash128 hash = hash128(bytes.data() + checksum_size, bytes.size() - checksum_size);
        std::memcpy(bytes.data(), &hash, sizeof hash);
    }
}

void check_state(std::span<const std::byte> bytes) {
    std::string why;
    const auto state = decode_state(bytes, &why);
    FUZZ_CHECK(state.has_value() == why.empty());
    if (state) {
        const auto again = encode_state(*state);
        const auto back = decode_state(again, &why);
        FUZZ_CHECK(back && encode_state(*back) == again);
        FUZZ_CHECK(back->durable == state->durable && back->uuid == state->uuid);
    }
}

void check_frame(std::span<const std::byte> bytes) {
    std::string why;
    const auto frame = decode_frame(bytes, disk_size, &why);
    FUZZ_CHECK(frame.has_value() == why.empty());
    if (!frame) {
        return;
    }
    uint64_t data_length = 0;
    for (const Op& op : frame->ops) {
        FUZZ_CHECK(is_mark(op.type) ||
                   (op.where.end() <= disk_size && op.where.end() > op.where.offset));
        data_length += has_data(op.type) ? op.where.length : 0;
    }
    const size_t coded_length = frame->data.size();
    FUZZ_CHECK(data_length == (frame->raw_length == 0 ? coded_length : frame->raw_length));
    if (frame->raw_length != 0) {
        static FrameDecoder decoder;
        std::vector<std::byte> raw(frame->raw_length);
        static_cast<void>(decoder.decode(frame->data, raw)); // true or false, within its bounds
    }
    FUZZ_CHECK(frame->header.open || frame->header.after < frame->header.first);

    const size_t prefix = frame_prefix_size(frame->ops.size());
    std::vector<std::byte> again(prefix + frame->data.size());
    std::copy(frame->data.begin(), frame->data.end(), again.begin() + ptrdiff_t(prefix));
    encode_frame(again, frame->header, frame->ops, frame->raw_length);
    const auto back = decode_frame(again, disk_size, &why);
    FUZZ_CHECK(back && back->ops == frame->ops && back->raw_length == frame->raw_length);
    FUZZ_CHECK(back->header.first == frame->header.first &&
               back->header.stream == frame->header.stream &&
               back->header.base == frame->header.base);
    FUZZ_CHECK(
        std::equal(back->data.begin(), back->data.end(), frame->data.begin(), frame->data.end()));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const auto* const first = reinterpret_cast<const std::byte*>(data);
    // A block of its own, so that a read past its end is seen.
    std::vector<std::byte> bytes(first + 1, first + size);
    if ((data[0] & 1) != 0) {
        seal(bytes);
    }
    if ((data[0] & 2) != 0) {
        check_state(bytes);
    } else {
        check_frame(bytes);
    }
    return 0;
}
