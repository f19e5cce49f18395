// SPDX-License-Identifier: GPL-2.0-or-later
// How hard a stream compresses: from what the link drains and what coding costs and gains, both
// measured while it runs. Pure: it is told what happened and says what to do with the next frame.
//
// The stream is as fast as the slower of the link and the coding threads, so the rate at which the
// disk's bytes would get across can be told for every level that was measured; what is not known,
// or not known any more, is tried on a frame now and then.
#pragma once

#include <array>
#include <cstdint>

namespace drover {

// Not thread-safe.
class Compression {
public:
    // From none to what no link is slow enough to pay for on more than a few processors.
    static constexpr std::array<int, 7> levels{0, -4, 1, 3, 6, 9, 12}; // of zstd; the first: none
    using Step = unsigned;                                             // of levels

    // What kept the stream from being faster.
    enum class Bound { none, link, coding };

    explicit Compression(unsigned threads) : threads_(threads) {}

    // For the next frame; 0: as it is.
    Step next();
    // A frame was coded so, in so much time of one thread. What did not shrink: coded == raw.
    void coded(Step step, uint64_t raw_bytes, uint64_t coded_bytes, uint64_t us);
    // What the far side acknowledged, as it was sent, since the last call.
    void tick(uint64_t sent_bytes, uint64_t elapsed_us, Bound bound);

    Step step() const { return step_; }

private:
    struct Measured {
        double bytes_per_us = 0; // of one thread, uncoded; 0: not known
        double ratio = 1;        // coded to uncoded
    };
    double rate(Step step) const;
    void choose();

    const unsigned threads_;
    double link_ = 0;                       // bytes/us as they are sent; 0: not known
    uint64_t seen_bytes_ = 0, seen_us_ = 0; // while the link is the bound
    std::array<Measured, levels.size()> measured_{};
    Step step_ = 0;
    uint64_t frames_ = 0, next_try_ = 0, pause_ = 0;
    bool upwards_ = true; // where the next try looks
};

// One link's: data that does not shrink comes in long runs, and is not tried again on every frame.
class ShrinkGuess {
public:
    bool worth_trying() {
        if (left_ == 0) {
            return true;
        }
        --left_;
        return false;
    }
    void tried(bool shrank) {
        constexpr unsigned longest = 31;
        run_ = shrank ? 0 : run_ * 2 + 1 < longest ? run_ * 2 + 1 : longest;
        left_ = run_;
    }

private:
    unsigned run_ = 0, left_ = 0;
};

} // namespace drover
