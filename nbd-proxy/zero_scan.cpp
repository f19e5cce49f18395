// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/zero_scan.h"

#include <cstring>

namespace drover {
namespace {

// Holes are made and kept in units of the usual file system block.
constexpr uint64_t unit = 4 * KiB;

} // namespace

bool is_zero(const std::byte* data, size_t length) noexcept {
    // Nearly all data that is not zero differs within the first words; the rest is memcmp's speed.
    constexpr size_t head = 16;
    for (size_t i = 0; i < std::min(length, head); ++i) {
        if (data[i] != std::byte{0}) {
            return false;
        }
    }
    return length <= head || std::memcmp(data, data + head, length - head) == 0;
}

std::vector<Op> pack_ops(std::byte* data, const std::vector<Extent>& parts, size_t table_bytes) {
    const size_t most = (table_bytes - frame_header_size) / frame_op_size;
    std::vector<Op> ops;
    std::byte* to = data;
    const auto add = [&](Extent piece, bool zero) {
        const OpType type = zero ? OpType::trim : OpType::write;
        if (!ops.empty() && ops.back().type == type && ops.back().where.end() == piece.offset) {
            ops.back().where.length += piece.length;
        } else {
            ops.push_back({type, piece});
        }
    };
    for (size_t i = 0; i < parts.size(); ++i) {
        for (uint64_t at = parts[i].offset; at < parts[i].end();) {
            const uint64_t end = std::min(round_down(at, unit) + unit, parts[i].end());
            std::byte* const from = data + (at - parts.front().offset);
            // Each further part may need one more operation, so may each change of kind here.
            const bool table_full = ops.size() + parts.size() - i + 1 >= most;
            const bool zero = !table_full && is_zero(from, end - at);
            add({at, end - at}, zero);
            if (!zero) {
                if (to != from) {
                    std::memmove(to, from, end - at);
                }
                to += end - at;
            }
            at = end;
        }
    }
    return ops;
}

} // namespace drover
