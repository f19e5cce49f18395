// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/checksum_impl.h"

namespace drover {

Hash128 hash128_avx2(const void* data, size_t length, uint64_t seed) noexcept {
    return hash128_here(data, length, seed);
}

} // namespace drover
