// SPDX-License-Identifier: GPL-2.0-or-later
// A migration's states, as the coordinator at the source sees them: one table, no I/O.
//
//   check -> prepare -> copy -> memory -> handover -> fencing -> promoting -> starting -> finishing
//   -> done
//     |         |        |        |          |           |           |           |       ^    |
//     +---------+--------+--------+----------+           +-----------+-----------+       |    |
//                        |                                     |                         |    |
//                     undoing  <-- the destination has     retreating -- it is the owner-'    |
//                        |         refused, durably ----------' |                             |
//                     failed (1)                            stranded (3)                unclean (4)
//
// Up to `handover` the VM belongs to the source, and every failure leads back to it. In `fencing`
// the first disk's fence is sent: from there nobody may run the VM at the source, unless the
// destination has refused this migration for good. The ways back are recovery.h.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

namespace drover {

enum class Phase {
    check,      // nothing is touched
    prepare,    // the destination makes its disks ready, the streams connect
    copy,       // until all disks are ready
    memory,     // the hypervisor sends memory, the VM runs
    handover,   // the VM is paused, or its writes are held
    fencing,    // the disks at the source give up, the first one first
    promoting,  // the disks at the destination take over
    starting,   // the VM is told to run there
    finishing,  // it runs there: what is left at the source is put away
    undoing,    // the VM goes on at the source
    retreating, // fenced: ask the destination, which is the owner or refuses
    done,
    failed,
    stranded,
    unclean,
};

enum class PhaseEvent {
    step,     // what the phase is for has been done
    stop,     // asked for: abort, a signal; or seen: a disk failed, the guest powered off
    failure,  // what the phase is for can't be done
    refused,  // the destination has refused, durably
    promoted, // it is the owner
};

struct PhaseStep {
    Phase from;
    PhaseEvent on;
    Phase to;
};

inline constexpr std::array phase_table{
    PhaseStep{Phase::check, PhaseEvent::step, Phase::prepare},
    PhaseStep{Phase::check, PhaseEvent::stop, Phase::undoing},
    PhaseStep{Phase::check, PhaseEvent::failure, Phase::undoing},
    PhaseStep{Phase::prepare, PhaseEvent::step, Phase::copy},
    PhaseStep{Phase::prepare, PhaseEvent::stop, Phase::undoing},
    PhaseStep{Phase::prepare, PhaseEvent::failure, Phase::undoing},
    PhaseStep{Phase::copy, PhaseEvent::step, Phase::memory},
    PhaseStep{Phase::copy, PhaseEvent::stop, Phase::undoing},
    PhaseStep{Phase::copy, PhaseEvent::failure, Phase::undoing},
    PhaseStep{Phase::memory, PhaseEvent::step, Phase::handover},
    PhaseStep{Phase::memory, PhaseEvent::stop, Phase::undoing},
    PhaseStep{Phase::memory, PhaseEvent::failure, Phase::undoing},
    PhaseStep{Phase::handover, PhaseEvent::step, Phase::fencing},
    PhaseStep{Phase::handover, PhaseEvent::stop, Phase::undoing},
    PhaseStep{Phase::handover, PhaseEvent::failure, Phase::undoing},
    PhaseStep{Phase::fencing, PhaseEvent::step, Phase::promoting},
    PhaseStep{Phase::fencing, PhaseEvent::failure, Phase::retreating},
    PhaseStep{Phase::promoting, PhaseEvent::step, Phase::starting},
    PhaseStep{Phase::promoting, PhaseEvent::failure, Phase::retreating},
    PhaseStep{Phase::starting, PhaseEvent::step, Phase::finishing},
    PhaseStep{Phase::starting, PhaseEvent::failure, Phase::retreating},
    PhaseStep{Phase::finishing, PhaseEvent::step, Phase::done},
    PhaseStep{Phase::finishing, PhaseEvent::failure, Phase::unclean},
    PhaseStep{Phase::undoing, PhaseEvent::step, Phase::failed},
    PhaseStep{Phase::undoing, PhaseEvent::failure, Phase::stranded},
    PhaseStep{Phase::retreating, PhaseEvent::refused, Phase::undoing},
    PhaseStep{Phase::retreating, PhaseEvent::promoted, Phase::finishing},
    PhaseStep{Phase::retreating, PhaseEvent::failure, Phase::stranded},
};

// nullopt: it is not possible in this phase.
constexpr std::optional<Phase> next_phase(Phase from, PhaseEvent event) {
    for (const PhaseStep& step : phase_table) {
        if (step.from == from && step.on == event) {
            return step.to;
        }
    }
    return std::nullopt;
}

constexpr bool is_final(Phase phase) {
    return std::none_of(phase_table.begin(), phase_table.end(), [phase](const PhaseStep& step) {
        return step.from == phase;
    });
}

constexpr bool can_stop(Phase phase) {
    return next_phase(phase, PhaseEvent::stop).has_value();
}

constexpr std::string_view phase_name(Phase phase) {
    switch (phase) {
    case Phase::check:
        return "check";
    case Phase::prepare:
        return "prepare";
    case Phase::copy:
        return "copy";
    case Phase::memory:
        return "memory";
    case Phase::handover:
        return "handover";
    case Phase::fencing:
        return "fencing";
    case Phase::promoting:
        return "promoting";
    case Phase::starting:
        return "starting";
    case Phase::finishing:
        return "finishing";
    case Phase::undoing:
        return "undoing";
    case Phase::retreating:
        return "retreating";
    case Phase::done:
        return "done";
    case Phase::failed:
        return "failed";
    case Phase::stranded:
        return "stranded";
    case Phase::unclean:
        return "unclean";
    }
    return "?";
}

namespace detail {

constexpr bool phases_are_deterministic() {
    for (size_t i = 0; i < phase_table.size(); ++i) {
        for (size_t j = i + 1; j < phase_table.size(); ++j) {
            if (phase_table[i].from == phase_table[j].from &&
                phase_table[i].on == phase_table[j].on) {
                return false;
            }
        }
    }
    return true;
}

} // namespace detail

static_assert(detail::phases_are_deterministic());
static_assert(can_stop(Phase::handover), "until the fence is sent, the way back is open");
static_assert(!can_stop(Phase::fencing) && !can_stop(Phase::promoting) &&
                  !can_stop(Phase::starting) && !can_stop(Phase::finishing),
              "no abort after the first fence");
static_assert(is_final(Phase::done) && is_final(Phase::failed) && is_final(Phase::stranded) &&
              is_final(Phase::unclean));

} // namespace drover
