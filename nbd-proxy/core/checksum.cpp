// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/checksum_impl.h"

namespace drover {

#if defined(__x86_64__)
Hash128 hash128_avx2(const void* data, size_t length, uint64_t seed) noexcept;
#endif

Hash128 hash128(const void* data, size_t length, uint64_t seed) noexcept {
#if defined(__x86_64__)
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) {
        return hash128_avx2(data, length, seed);
    }
#endif
    return hash128_here(data, length, seed);
}

} // namespace drover
