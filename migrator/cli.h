// SPDX-License-Identifier: GPL-2.0-or-later
// The command line of `drover`: parsing ends here, what a command does is elsewhere.
#pragma once

#include "migrator/config.h"
#include "migrator/memory_ways.h"

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace drover {

// Of every command (drover(1), EXIT STATUS).
enum ExitCode : int {
    exit_done = 0,
    exit_failed = 1,  // the VM runs at the source
    exit_usage = 2,   // nothing was touched
    exit_recover = 3, // the source is fenced, the destination unknown: drover(1), RECOVERY
    exit_cleanup = 4, // the VM runs at the destination, clean-up remains
};

// How to reach the other site.
struct PeerOptions {
    std::string host;         // for rsh; empty with to_uri
    std::string rsh = "ssh";  // `CMD HOST drover agent --stdio`, or with {host} in its place
    std::string data_address; // where the data links dial; empty: host
    std::string to_uri;       // --disk-only: any NBD server instead of an agent
};

struct MigrateOptions {
    PeerOptions peer;
    bool disk_only = false;
    bool detach = false; // --disk-only: the source fences itself and does not forward
    uint64_t downtime_ms = 300;
    uint64_t max_bandwidth = 0;               // bytes/s over all, 0: unlimited
    std::string compress = "auto";            // or zstd, none
    unsigned connections = 0;                 // of each disk's stream; 0: as the link needs
    std::chrono::seconds converge_timeout{0}; // 0: none
    std::chrono::seconds stall_timeout{600};  // without progress; 0: none
    // What new images there start from, paths at the destination: by disk.
    std::map<std::string, std::string> bases;
    MemoryWays memory;
    bool postcopy_at_once = false; // after the first pass; else, if at all, rather than give up
    bool verify = false;           // compare both sides as they were at the switchover
    bool release_source = false;   // and then remove the images here
    bool dry_run = false;          // both sites check, nothing is started
    bool json = false;             // progress and report as JSON lines on stdout
};

struct VerifyOptions {
    PeerOptions peer;
    bool json = false;
};

struct RecoverOptions {
    PeerOptions peer; // host empty: as the journal has it
    bool other_side_is_dead = false;
};

// `drover serve`: starts the VM's disks; with `foreground` waits for a signal, then stops them, or
// for the end of one of them. Returns the exit status; throws Error.
int run_serve(const SiteConfig& site, const std::string& name_or_path, bool foreground);
// `drover serve --stop`.
int run_serve_stop(const SiteConfig& site, const std::string& name_or_path);
struct SetOptions {
    std::optional<uint64_t> max_bandwidth, downtime_ms; // as in MigrateOptions
};
// `drover set`: changes a migration that runs. Returns the exit status; throws Error.
int run_set(const SiteConfig& site, const std::string& name_or_path, const SetOptions& options);
// `drover abort`: asks the coordinator; where none runs, cancels at the plugins. Returns
// the exit status; throws Error.
int run_abort(const SiteConfig& site, const std::string& name_or_path);

// What --base was given, [DISK=]IMAGE each, by disk. Throws Error(usage).
std::map<std::string, std::string> bases_of(const VmFile& vm,
                                            const std::vector<std::string>& given);

// The whole program; returns the exit status. Nothing is thrown.
int run_cli(int argc, char** argv);

} // namespace drover
