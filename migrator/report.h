// SPDX-License-Identifier: GPL-2.0-or-later
// What `drover migrate` tells: progress while it runs, and how it went.
#pragma once

#include "common/json_rpc.h"
#include "migrator/driver.h"
#include "migrator/phases.h"
#include "migrator/tunnels.h"

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace drover {

// The moments of a migration; empty: it did not come to that.
struct MigrationTimes {
    std::optional<Deadline> begin, streaming, ready, memory, paused, memory_sent, handed_over,
        fenced, promoted, running,
        whole, // post-copy: all of the memory is there
        end;
};

struct DiskFigures {
    std::string name;
    uint64_t size = 0;
    uint64_t sent_bytes = 0; // on the wire
    uint64_t captured_bytes = 0, delta_bytes = 0, zero_bytes = 0;
    uint64_t lsn = 0; // of the handover
};

struct MigrationReport {
    std::string vm, from, to, migration;
    uint64_t generation = 0;
    bool disk_only = false;
    bool verified = false; // and no difference
    int64_t began_at = 0;  // seconds since 1970
    MigrationTimes times;
    std::vector<DiskFigures> disks;
    std::optional<MemoryProgress> memory;
    std::vector<TunnelEnd> tunnels; // their ends here
    std::string result;             // "done", "failed", "stranded", "unclean", "checked"
    std::string error;              // what went wrong

    uint64_t bytes_sent() const;
};

// Milliseconds between two moments; null if there is one missing.
rpc::Json milliseconds_between(std::optional<Deadline> from, std::optional<Deadline> to);
rpc::Json report_json(const MigrationReport& report);
std::string report_text(const MigrationReport& report);
// As report_json has it. Throws Error(io); Error(refused), with nothing changed, where the file
// that is there is damaged, or no report.
void keep_report(const std::string& path, rpc::Json report);

struct ProgressLine {
    Phase phase = Phase::check;
    uint64_t elapsed_ms = 0;
    uint64_t total_bytes = 0; // of all disks
    uint64_t left_bytes = 0;  // dirty, or not yet acknowledged
    uint64_t sent_bytes = 0;
    uint64_t rate = 0; // bytes/s
    std::optional<uint64_t> eta_ms;
    std::optional<uint64_t>
        throttle_limit; // the disks' writers are slowed down to so much, bytes/s
    std::optional<MemoryProgress> memory;
};

// On stdout: on a terminal one line that is written again and again; else a line at each change of
// phase and every few seconds; with json every message as an object, a line each.
class ProgressPrinter {
public:
    ProgressPrinter(std::FILE* out, bool json);

    void phase(Phase phase, uint64_t elapsed_ms);
    // Often enough to be called with every news; it leaves out what comes too soon.
    void progress(const ProgressLine& line);
    // To be read by people, on stderr; "level" is info, warning or error.
    void message(const std::string& level, const std::string& text);
    void report(const MigrationReport& report);

private:
    void print_json(const rpc::Json& object);
    void end_line();

    std::FILE* out_;
    bool json_, terminal_;
    bool line_open_ = false;
    Deadline next_;
};

} // namespace drover
