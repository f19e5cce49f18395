// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/compressor.h"

#include "nbd-proxy/frame_codec.h"
#include "nbd-proxy/stream_priority.h"
#include "nbd-proxy/tracked.h"

#include <algorithm>
#include <new>
#include <optional>

namespace drover {
namespace {

constexpr unsigned most_threads = 4;
constexpr Compression::Step fixed_step = 3;
// Less than that is not worth the far side's time. And a header takes as much as what is smaller.
constexpr uint64_t least_gain = 32, least_data = 512; // a 32nd; bytes

unsigned thread_count() {
    return std::clamp(std::thread::hardware_concurrency(), 1U, most_threads);
}

} // namespace

Compressor::Compressor(Compress mode, std::shared_ptr<BufferPool> buffers)
    : mode_(mode), buffers_(std::move(buffers)), coding_(mode == Compress::zstd),
      compression_(thread_count()) {
    under_way_.reserve(thread_count()); // the threads have nobody to tell of a lack of memory
    try {
        for (unsigned i = 0; i < thread_count(); ++i) {
            threads_.emplace_back([this] { work(); });
        }
    } catch (const std::exception&) {
        // Fewer will do; none: frames go as they are.
    }
}

Compressor::~Compressor() {
    {
        const std::lock_guard lock(mutex_);
        ending_ = true;
    }
    queued_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

// With mutex_.
Compression::Step Compressor::step() const {
    return mode_ == Compress::zstd ? fixed_step : compression_.step();
}

size_t Compressor::depth() const {
    return coding_ ? threads_.size() + 1 : 1;
}

void Compressor::submit(Job& job, bool worth_trying) {
    const Frame& frame = *job.frame;
    // A handover may still be taken out of its frame.
    const bool may_be = !threads_.empty() && frame.coded_length == 0 &&
                        frame.data_length >= least_data &&
                        std::none_of(frame.ops.begin(), frame.ops.end(), [](const Op& op) {
                            return op.type == OpType::handover;
                        });
    const std::lock_guard lock(mutex_);
    if (may_be && worth_trying) {
        job.step = mode_ == Compress::zstd ? fixed_step : compression_.next();
    }
    if (job.step != 0) {
        queue_.push_back(&job);
        queued_.notify_one();
        return;
    }
    if (frame.coded_length == 0) {
        totals_.raw_bytes += frame.data_length;
        totals_.coded_bytes += frame.data_length;
    }
    job.done = true;
}

void Compressor::forget(const void* owner) {
    std::unique_lock lock(mutex_);
    std::erase_if(queue_, [&](const Job* job) { return job->owner == owner; });
    finished_.wait(lock, [&] {
        return std::find(under_way_.begin(), under_way_.end(), owner) == under_way_.end();
    });
}

void Compressor::code(Job& job, FrameEncoder& encoder) {
    Frame& frame = *job.frame;
    FrameBuffer coded = buffers_->take(frame.data_length);
    const uint64_t limit = frame.data_length - frame.data_length / least_gain;
    const size_t size = encoder.encode({frame.buffer.data(), frame.data_length},
                                       {coded.data(), limit},
                                       Compression::levels[job.step]);
    job.tried = true;
    job.shrank = size > 0;
    if (job.shrank) {
        frame.buffer = std::move(coded);
        frame.coded_length = static_cast<uint32_t>(size);
    }
}

void Compressor::work() noexcept {
    lower_stream_priority();
    std::optional<FrameEncoder> encoder;
    std::unique_lock lock(mutex_);
    for (;;) {
        queued_.wait(lock, [this] { return ending_ || !queue_.empty(); });
        if (ending_) {
            return;
        }
        Job& job = *queue_.front();
        queue_.pop_front();
        under_way_.push_back(job.owner);
        lock.unlock();
        const uint64_t begun_us = monotonic_us();
        try {
            if (!encoder) {
                encoder.emplace();
            }
            code(job, *encoder);
        } catch (const std::bad_alloc&) {
            // It goes as it is.
        }
        const uint64_t us = monotonic_us() - begun_us;
        lock.lock();
        const Frame& frame = *job.frame;
        const uint64_t now = frame.coded_length != 0 ? frame.coded_length : frame.data_length;
        compression_.coded(job.step, frame.data_length, now, us);
        coding_ = step() != 0;
        totals_.raw_bytes += frame.data_length;
        totals_.coded_bytes += now;
        under_way_.erase(std::find(under_way_.begin(), under_way_.end(), job.owner));
        // Once it is done the owner may free the job; the owner itself waits in forget() for the
        // lock before it goes.
        const auto wake = std::move(job.wake);
        job.done = true;
        wake();
        finished_.notify_all();
    }
}

void Compressor::tick(uint64_t sent_bytes, uint64_t elapsed_us, Compression::Bound bound) {
    const std::lock_guard lock(mutex_);
    compression_.tick(sent_bytes, elapsed_us, bound);
    coding_ = step() != 0;
}

Compressor::Totals Compressor::totals() const {
    const std::lock_guard lock(mutex_);
    Totals totals = totals_;
    totals.level = Compression::levels[step()];
    return totals;
}

} // namespace drover
