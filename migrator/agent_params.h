// SPDX-License-Identifier: GPL-2.0-or-later
// Parameters of the agent's methods: what a peer sends, checked before anything is done with it.
// The description of a VM has a check of its own, check_description() in vm_file.h.
#pragma once

#include "common/json_rpc.h"
#include "migrator/config.h"

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace drover {

// Exactly so many lower-case hexadecimal digits. Both throw Error(usage).
std::string hex_param(const rpc::Json& params, const char* key, size_t digits);

// `vm`, and `disks`: some of it, by their names; with_uuids: each {"name", "uuid"}.
struct NamedDisks {
    struct Disk {
        std::string name;
        std::string uuid; // as it came, or "" without
    };
    std::string vm;
    std::vector<Disk> disks;
};
NamedDisks named_disks_param(const rpc::Json& params, bool with_uuids = false);

// How long an agent waits to hear from its coordinator before it takes that for dead: `patience_s`
// of `alive`, within bounds, since what it has begun is in the way of others meanwhile.
inline constexpr std::chrono::seconds longest_silence{60}; // where it was told nothing
inline constexpr std::chrono::seconds longest_patience = std::chrono::hours(24);
std::chrono::seconds patience_param(const rpc::Json& params);

// `used` of `survey`: how much of each disk holds anything, in bytes, by their names; it may be
// left out. Throws Error(usage).
std::map<std::string, uint64_t> used_param(const rpc::Json& params);

// Of `probe`: the word, and how many ports. Throws Error(usage), also for more ports than a VM can
// need at this site.
inline constexpr size_t probe_word_digits = 32; // hexadecimal
struct ProbeParams {
    std::string word;
    size_t tcp = 0, udp = 0;
};
ProbeParams probe_params(const SiteConfig& site, const rpc::Json& params);

} // namespace drover
