// SPDX-License-Identifier: GPL-2.0-or-later
// Included by checksum.cpp and checksum_avx2.cpp, which the compiler is given
// different instruction sets for. Everything of xxHash is static here.
#define XXH_INLINE_ALL
#include "nbd-proxy/core/checksum.h"

#include <xxhash.h>

namespace drover {
namespace {

Hash128 hash128_here(const void* data, size_t length, uint64_t seed) noexcept {
    const XXH128_hash_t hash = XXH3_128bits_withSeed(data, length, seed);
    return {hash.low64, hash.high64};
}

} // namespace
} // namespace drover
