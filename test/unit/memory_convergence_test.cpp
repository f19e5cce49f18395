// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/units.h"
#include "migrator/memory_convergence.h"

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

struct Model {
    MemoryConvergence convergence{10s};
    MemoryProgress progress;
    MemoryConvergence::Clock::time_point now{1h};
    bool stalled = false;

    // A pass that begins with so much and takes so many seconds.
    void pass(uint64_t bytes, unsigned seconds) {
        ++progress.passes;
        for (unsigned i = 0; i < 2 * seconds; ++i) {
            progress.remaining_bytes = bytes - bytes * i / (2 * seconds);
            progress.sent_bytes += bytes / (2 * seconds);
            stalled = convergence.stalled(progress, now);
            now += 500ms;
        }
    }
};

} // namespace

TEST_CASE("memory convergence: a long pass is none of the guest's doing") {
    Model model;
    model.pass(GiB, 3600);
    CHECK(!model.stalled);
    model.pass(GiB / 2, 1800);
    CHECK(!model.stalled);
    model.pass(100 * MiB, 400);
    CHECK(!model.stalled);
}

TEST_CASE("memory convergence: passes that begin with as much as those before") {
    Model model;
    model.pass(GiB, 30);
    for (unsigned i = 0; i < 5; ++i) {
        model.pass(20 * MiB, 2);
        CHECK(!model.stalled);
    }
    model.pass(20 * MiB, 2);
    model.pass(20 * MiB, 2);
    CHECK(model.stalled);
}

TEST_CASE("memory convergence: every pass is a little nearer") {
    Model model;
    for (uint64_t bytes = GiB; bytes > MiB; bytes = bytes * 7 / 8) {
        model.pass(bytes, 8);
        CHECK(!model.stalled);
    }
}

TEST_CASE("memory convergence: nothing is sent") {
    Model model;
    model.pass(GiB, 5);
    for (unsigned i = 0; i < 18; ++i) {
        model.now += 500ms;
        CHECK(!model.convergence.stalled(model.progress, model.now));
    }
    model.now += 1s;
    CHECK(model.convergence.stalled(model.progress, model.now));
    CHECK(!MemoryConvergence(0s).stalled(model.progress, model.now));
}
