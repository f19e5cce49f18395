// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/frame_codec.h"

#include <new>

#include <zstd.h>
#include <zstd_errors.h>

namespace drover {

void FrameEncoder::Free::operator()(ZSTD_CCtx_s* context) const noexcept {
    ZSTD_freeCCtx(context);
}

FrameEncoder::FrameEncoder() : context_(ZSTD_createCCtx()) {
    if (!context_) {
        throw std::bad_alloc();
    }
    // The frame says how long it is, and has a checksum of its own.
    ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_contentSizeFlag, 0);
}

size_t FrameEncoder::encode(std::span<const std::byte> data, std::span<std::byte> to, int level) {
    ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, level);
    const size_t size =
        ZSTD_compress2(context_.get(), to.data(), to.size(), data.data(), data.size());
    if (!ZSTD_isError(size)) {
        return size;
    }
    if (ZSTD_getErrorCode(size) == ZSTD_error_memory_allocation) {
        throw std::bad_alloc();
    }
    return 0;
}

void FrameDecoder::Free::operator()(ZSTD_DCtx_s* context) const noexcept {
    ZSTD_freeDCtx(context);
}

FrameDecoder::FrameDecoder() : context_(ZSTD_createDCtx()) {
    if (!context_) {
        throw std::bad_alloc();
    }
}

bool FrameDecoder::decode(std::span<const std::byte> coded, std::span<std::byte> to) {
    return ZSTD_decompressDCtx(context_.get(), to.data(), to.size(), coded.data(), coded.size()) ==
           to.size();
}

} // namespace drover
