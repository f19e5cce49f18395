// SPDX-License-Identifier: GPL-2.0-or-later
// The data of a frame, smaller: zstd (Collet and Kucherawy, RFC 8878), each frame by itself, so
// that they can be coded and expanded side by side and in any order.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace drover {

// One thread's.
class FrameEncoder {
public:
    FrameEncoder();
    // How many bytes of `to` it took; 0: it does not fit there. Allocates at a level that was not
    // used before: throws std::bad_alloc.
    size_t encode(std::span<const std::byte> data, std::span<std::byte> to, int level);

private:
    struct Free {
        void operator()(ZSTD_CCtx_s* context) const noexcept;
    };
    std::unique_ptr<ZSTD_CCtx_s, Free> context_;
};

// One thread's. Takes memory for what it is given to expand to, whatever the coded data claims.
class FrameDecoder {
public:
    FrameDecoder();
    // False if the data is not what an encoder made of exactly so many bytes.
    bool decode(std::span<const std::byte> coded, std::span<std::byte> to);

private:
    struct Free {
        void operator()(ZSTD_DCtx_s* context) const noexcept;
    };
    std::unique_ptr<ZSTD_DCtx_s, Free> context_;
};

} // namespace drover
