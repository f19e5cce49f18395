// SPDX-License-Identifier: GPL-2.0-or-later
// The threads that compress a stream's frames, for all of its links.
#pragma once

#include "nbd-proxy/buffer_pool.h"
#include "nbd-proxy/core/compression.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

namespace drover {

enum class Compress { none, automatic, zstd };

class FrameEncoder;

class Compressor {
public:
    // A frame on its way to be sent, in the order of its link. Its address stays the same.
    struct Job {
        Frame* frame = nullptr;
        std::atomic<bool> done{false};
        bool tried = false, shrank = false; // once done
        Compression::Step step = 0;
        const void* owner = nullptr;
        std::function<void()> wake; // called when it is done, while the owner is still there
    };
    struct Totals {
        int level = 0;                           // of zstd; 0: nothing is coded now
        uint64_t raw_bytes = 0, coded_bytes = 0; // of all frames that were given here
    };

    // mode: automatic, or zstd (always, at its own default level).
    Compressor(Compress mode, std::shared_ptr<BufferPool> buffers);
    ~Compressor();
    Compressor(const Compressor&) = delete;
    Compressor& operator=(const Compressor&) = delete;

    // Frames that a link should have here, so that no thread waits; 1: nothing is coded now.
    size_t depth() const;
    // The frame's data is in its buffer. Until it is done the frame is the compressor's; then its
    // buffer may be another one, and coded_length be set. worth_trying: ShrinkGuess.
    void submit(Job& job, bool worth_trying);
    // None of the owner's jobs is here any more, done or not, when this returns.
    void forget(const void* owner);

    void tick(uint64_t sent_bytes, uint64_t elapsed_us, Compression::Bound bound);
    Totals totals() const;

private:
    Compression::Step step() const;
    void work() noexcept;
    void code(Job& job, FrameEncoder& encoder);

    const Compress mode_;
    const std::shared_ptr<BufferPool> buffers_;
    std::atomic<bool> coding_{false};
    mutable std::mutex mutex_;
    std::condition_variable queued_, finished_;
    Compression compression_;
    std::deque<Job*> queue_;
    std::vector<const void*> under_way_; // owners
    Totals totals_;
    bool ending_ = false;
    std::vector<std::thread> threads_;
};

} // namespace drover
