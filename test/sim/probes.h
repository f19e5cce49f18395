// SPDX-License-Identifier: GPL-2.0-or-later
// How often the rarer things happened: a run that never saw one proves nothing about it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace drover::sim {

// NAME, and what it is called in the list.
// clang-format off
#define DROVER_SIM_PROBES(probe) \
    probe(looked_in_sync, "looked while in sync") \
    probe(looked_consistent, "looked while marked consistent") \
    probe(captured_again, "captures read again") \
    probe(hole, "holes captured") \
    probe(hole_written, "holes that were written") \
    probe(same, "blocks found to be there") \
    probe(same_no_more, "blocks that were, and were written meanwhile") \
    probe(write_failed, "guest's writes that failed") \
    probe(write_resent, "guest's requests sent again") \
    probe(not_wanted, "writes whose data was not wanted") \
    probe(session_same, "sessions to the same instance") \
    probe(session_other, "sessions to another instance") \
    probe(state_waited, "states that waited for a worker") \
    probe(stale_frame, "stale frames refused") \
    probe(frame_waited, "frames that waited") \
    probe(plain_waited, "plain frames that waited") \
    probe(frame_failed, "frames that the disk failed") \
    probe(stream_failed, "streams that failed") \
    probe(stream_again, "further streams of an attempt") \
    probe(handover_durable, "handovers durable") \
    probe(handover_voided, "handovers voided by a write") \
    probe(handover_timeout, "quiesces that timed out") \
    probe(handover_again, "handovers sent again") \
    probe(record_not_saved, "records that could not be saved") \
    probe(record_half_saved, "records saved, and said to be not") \
    probe(record_reverted, "records that a host's death took back") \
    probe(link_cut, "links cut") \
    probe(link_silent, "links that fell silent") \
    probe(partition, "partitions") \
    probe(source_died, "source's plugins killed") \
    probe(destination_died, "destination's plugins killed") \
    probe(source_host_died, "source's hosts that died") \
    probe(destination_host_died, "destination's hosts that died") \
    probe(clock_jumped, "clocks that jumped") \
    probe(disk_full, "disks that were full") \
    probe(coordinator_died, "coordinators killed") \
    probe(agent_died, "agents killed") \
    probe(agent_displaced, "agents that made way for another one") \
    probe(hypervisor_died, "hypervisors killed") \
    probe(operator_cancelled, "migrations cancelled") \
    probe(step_not_noted, "steps that could not be noted") \
    probe(migrated, "switchovers that came to their end") \
    probe(verdict_here, "recovered: it goes on at the source") \
    probe(verdict_there, "recovered: it belongs to the destination") \
    probe(verdict_undecided, "recoveries that could not decide") \
    probe(did_not_run, "hypervisors that would not run the VM") \
    probe(put_down, "agents that kept a whole replica") \
    probe(destination_lost, "destinations lost for good") \
    probe(forced, "VMs taken back by force") \
    probe(superseded, "destinations that came back after that") \
    probe(source_lost, "sources lost for good") \
    probe(taken, "VMs taken by force at the destination") \
    probe(not_taken, "VMs that could not be") \
    probe(source_superseded, "sources that came back after that")
// clang-format on

enum class Probe : size_t {
#define DROVER_SIM_NAME(name, text) name,
    DROVER_SIM_PROBES(DROVER_SIM_NAME)
#undef DROVER_SIM_NAME
        count_
};

inline constexpr std::array<const char*, size_t(Probe::count_)> probe_texts{
#define DROVER_SIM_TEXT(name, text) text,
    DROVER_SIM_PROBES(DROVER_SIM_TEXT)
#undef DROVER_SIM_TEXT
};

using Probes = std::array<uint64_t, size_t(Probe::count_)>;

} // namespace drover::sim
