// SPDX-License-Identifier: GPL-2.0-or-later
// XXH3-128 (Yann Collet, xxHash 0.8; the canonical big-endian form turned into
// two little-endian words, low half first), compiled in twice: baseline and AVX2, the latter
// used where the CPU has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drover {

struct Hash128 {
    uint64_t low = 0, high = 0;
    bool operator==(const Hash128&) const = default;
};

Hash128 hash128(const void* data, size_t length, uint64_t seed = 0) noexcept;

} // namespace drover
