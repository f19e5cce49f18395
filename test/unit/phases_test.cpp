// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/phases.h"

#include <set>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;

namespace {

const std::vector<PhaseEvent> events{
    PhaseEvent::step, PhaseEvent::stop, PhaseEvent::failure, PhaseEvent::refused};

std::set<Phase> reachable(Phase from, const std::set<PhaseEvent>& but_not = {}) {
    std::set<Phase> found{from};
    std::vector<Phase> todo{from};
    while (!todo.empty()) {
        const Phase phase = todo.back();
        todo.pop_back();
        for (const PhaseEvent event : events) {
            const auto next = but_not.count(event) != 0 ? std::nullopt : next_phase(phase, event);
            if (next && found.insert(*next).second) {
                todo.push_back(*next);
            }
        }
    }
    return found;
}

} // namespace

TEST_CASE("phases: every one is reached, and a migration without trouble ends in done") {
    CHECK(reachable(Phase::check).size() == static_cast<size_t>(Phase::unclean) + 1);
    Phase phase = Phase::check;
    int steps = 0;
    while (const auto next = next_phase(phase, PhaseEvent::step)) {
        phase = *next;
        REQUIRE(++steps < 20);
    }
    CHECK(phase == Phase::done);
}

TEST_CASE("phases: before the fence every failure and every stop ends at the source") {
    for (const Phase phase :
         {Phase::check, Phase::prepare, Phase::copy, Phase::memory, Phase::handover}) {
        CAPTURE(phase_name(phase));
        CHECK(next_phase(phase, PhaseEvent::stop) == Phase::undoing);
        CHECK(next_phase(phase, PhaseEvent::failure) == Phase::undoing);
    }
    CHECK(next_phase(Phase::undoing, PhaseEvent::step) == Phase::failed);
}

TEST_CASE("phases: after the fence only the destination's refusal leads back to the source") {
    for (const Phase phase : {Phase::fencing, Phase::promoting, Phase::starting}) {
        CAPTURE(phase_name(phase));
        CHECK(reachable(phase).count(Phase::failed) == 1);
        CHECK(reachable(phase, {PhaseEvent::refused}).count(Phase::failed) == 0);
    }
    // The VM runs at the destination: never back.
    CHECK(reachable(Phase::finishing).count(Phase::failed) == 0);
    CHECK(reachable(Phase::finishing).count(Phase::stranded) == 0);
}

TEST_CASE("phases: each has a name of its own") {
    std::set<std::string_view> names;
    for (int i = 0; i <= static_cast<int>(Phase::unclean); ++i) {
        names.insert(phase_name(static_cast<Phase>(i)));
    }
    CHECK(names.size() == static_cast<size_t>(Phase::unclean) + 1);
    CHECK(names.count("?") == 0);
}
