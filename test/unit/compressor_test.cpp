// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/compressor.h"
#include "nbd-proxy/frame_codec.h"

#include <cstring>
#include <list>
#include <random>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr size_t capacity = 256 * KiB;

struct Fixture {
    std::shared_ptr<BufferPool> buffers = std::make_shared<BufferPool>(capacity, 4);
    Compressor compressor{Compress::zstd, buffers};
    std::list<Frame> frames;
    std::list<Compressor::Job> jobs;
    std::atomic<unsigned> woken{0};

    Frame& frame(uint64_t length, bool shrinks, OpType type = OpType::write) {
        Frame& frame = frames.emplace_back();
        frame.ops = {{type, {0, length}}};
        frame.data_length = length;
        frame.buffer = buffers->take(length);
        std::mt19937 random(7);
        for (uint64_t i = 0; i < length; ++i) {
            frame.buffer.data()[i] =
                shrinks ? static_cast<std::byte>(i / 100) : static_cast<std::byte>(random());
        }
        return frame;
    }
    Compressor::Job& submit(Frame& frame, bool worth = true) {
        Compressor::Job& job = jobs.emplace_back();
        job.frame = &frame;
        job.owner = this;
        job.wake = [this] { ++woken; };
        compressor.submit(job, worth);
        return job;
    }
    void wait() {
        for (const Compressor::Job& job : jobs) {
            while (!job.done) {
                std::this_thread::yield();
            }
        }
    }
    ~Fixture() { compressor.forget(this); }
};

} // namespace

TEST_CASE("compressor: what shrinks is coded, and comes out again as it was") {
    Fixture f;
    for (const uint64_t length : {uint64_t{512}, uint64_t{4096}, uint64_t{capacity}, 3 * uint64_t{MiB}}) {
        f.submit(f.frame(length, true));
    }
    f.wait();
    CHECK(f.woken == 4);
    FrameDecoder decoder;
    for (const Frame& frame : f.frames) {
        REQUIRE(frame.coded_length > 0);
        CHECK(frame.coded_length < frame.data_length);
        std::vector<std::byte> raw(frame.data_length);
        const std::span coded(frame.buffer.data(), frame.coded_length);
        REQUIRE(decoder.decode(coded, raw));
        for (uint64_t i = 0; i < raw.size(); ++i) {
            REQUIRE(raw[i] == static_cast<std::byte>(i / 100));
        }
        CHECK_FALSE(decoder.decode(coded, std::span(raw).first(raw.size() - 1)));
        CHECK_FALSE(decoder.decode(coded.first(coded.size() - 1), raw));
        raw.resize(raw.size() + 1);
        CHECK_FALSE(decoder.decode(coded, raw));
    }
    const Compressor::Totals totals = f.compressor.totals();
    CHECK(totals.raw_bytes > 2 * totals.coded_bytes);
}

TEST_CASE("compressor: what does not shrink goes as it is, and so does what is not worth it") {
    Fixture f;
    const Compressor::Job& noise = f.submit(f.frame(capacity, false));
    f.submit(f.frame(capacity, true), false);
    f.submit(f.frame(100, true));
    f.submit(f.frame(32, true, OpType::handover));
    Frame& handover = f.frame(4096, true);
    handover.ops.push_back({OpType::handover, {0, 32}});
    f.submit(handover);
    f.wait();
    CHECK(noise.tried);
    CHECK_FALSE(noise.shrank);
    for (const Frame& frame : f.frames) {
        CHECK(frame.coded_length == 0);
    }
    CHECK(f.compressor.totals().raw_bytes == f.compressor.totals().coded_bytes);
}

TEST_CASE("compressor: a frame is not coded twice") {
    Fixture f;
    Frame& frame = f.frame(capacity, true);
    f.submit(frame);
    f.wait();
    const uint32_t length = frame.coded_length;
    const Compressor::Job& again = f.submit(frame);
    CHECK(again.done);
    CHECK(frame.coded_length == length);
}

TEST_CASE("compressor: once its jobs are forgotten an owner may go") {
    for (int round = 0; round < 50; ++round) {
        Fixture f;
        for (int i = 0; i < 20; ++i) {
            f.submit(f.frame(64 * KiB, true));
        }
    } // jobs and frames are freed in the midst of it
}
