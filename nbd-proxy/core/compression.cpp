// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/compression.h"

#include <algorithm>

namespace drover {
namespace {

// A harder level has to gain so much more: processor time is the guest's too.
constexpr double worth = 1.05;
// Of the processors, for coding: links and guests need them too, and on a fast link, more of them.
constexpr double share = 0.5;
// Frames between two tries: of a neighbour while coding, and, doubled each time, while nothing that
// was tried is worth it.
constexpr uint64_t try_neighbour = 16, first_pause = 4, longest_pause = 256;
// While coding is what bounds it, the link takes more than is seen: how fast that is believed.
constexpr double unseen = 1.25, most_link = 1e6;
// A slow link answers frames one by one: what it drains shows over several of them.
constexpr uint64_t sample_us = 250'000;

void blend(double& average, double sample, double weight) {
    average = average == 0 ? sample : average + weight * (sample - average);
}

} // namespace

double Compression::rate(Step step) const {
    if (step == 0) {
        return link_;
    }
    const Measured& measured = measured_[step];
    return std::min(share * threads_ * measured.bytes_per_us, link_ / measured.ratio);
}

// From the cheapest upwards, so that of two that are as good the cheaper one is it.
void Compression::choose() {
    Step best = 0;
    for (Step step = 1; step < levels.size(); ++step) {
        if (measured_[step].bytes_per_us > 0 && rate(step) > worth * rate(best)) {
            best = step;
        }
    }
    step_ = best;
}

Compression::Step Compression::next() {
    if (link_ == 0 || ++frames_ < next_try_) {
        return step_;
    }
    if (step_ == 0) {
        pause_ = std::clamp(2 * pause_, first_pause, longest_pause);
        next_try_ = frames_ + pause_;
        return 1;
    }
    pause_ = 0;
    next_try_ = frames_ + try_neighbour;
    upwards_ = !upwards_;
    return upwards_ ? std::min<Step>(step_ + 1, levels.size() - 1) : std::max<Step>(step_ - 1, 1);
}

void Compression::coded(Step step, uint64_t raw_bytes, uint64_t coded_bytes, uint64_t us) {
    Measured& measured = measured_[step];
    // A try is one frame for many.
    const double weight = step == step_ ? 0.1 : 0.5;
    blend(measured.bytes_per_us,
          static_cast<double>(raw_bytes) / static_cast<double>(std::max<uint64_t>(us, 1)),
          weight);
    measured.ratio += weight * (static_cast<double>(coded_bytes) / static_cast<double>(raw_bytes) -
                                measured.ratio);
    const Step before = step_;
    choose();
    if (step_ != before && step_ != 0) {
        next_try_ = frames_; // towards the best one quickly
    }
}

void Compression::tick(uint64_t sent_bytes, uint64_t elapsed_us, Bound bound) {
    if (elapsed_us == 0) {
        return;
    }
    const double seen = static_cast<double>(sent_bytes) / static_cast<double>(elapsed_us);
    if (bound == Bound::coding) {
        link_ = std::min(std::max(link_, seen) * unseen, most_link);
    }
    if (bound != Bound::link) {
        seen_bytes_ = seen_us_ = 0;
    } else {
        seen_bytes_ += sent_bytes;
        seen_us_ += elapsed_us;
    }
    if (seen_us_ >= sample_us && seen_bytes_ > 0) {
        blend(link_, static_cast<double>(seen_bytes_) / static_cast<double>(seen_us_), 0.5);
        seen_bytes_ = seen_us_ = 0;
    }
    choose();
}

} // namespace drover
