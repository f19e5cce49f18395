// SPDX-License-Identifier: GPL-2.0-or-later
// What an agent answers and tells (docs/control.md), read here and nowhere else: the other side may
// be broken or lie, and an answer that is not what was asked for is an Error(peer), as a lost link
// is. Lists come back in the order of `disks`, each with an entry of its own; what else there is in
// them is left alone. No I/O.
#pragma once

#include "migrator/disk_standing.h"
#include "migrator/finding.h"
#include "migrator/host_facts.h"
#include "migrator/memory_ways.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace drover {

using DiskNames = std::vector<std::string>;

// Where something there listens.
struct DataPort {
    uint16_t port = 0;
    std::string psk_user;
    bool operator==(const DataPort&) const = default;
};

// Also throws Error(refused): it speaks another protocol.
void read_hello(const rpc::Json& answer, uint64_t protocol, const std::string& host);

// The version of its drover, printable.
std::string read_program_version(const rpc::Json& hello);

// The largest generation that is known there, `ours` here. Each attempt burns one, so that a peer
// could use them all up: it may be ahead by 2^32 at most.
uint64_t read_check(const rpc::Json& answer, uint64_t ours);

// Of `check`: the VM's tunnels lead to that host, which was the VM's before.
bool read_at_home(const rpc::Json& answer);

// Of `segment`: whether the VM has answered there, on these NICs, by their MACs.
std::vector<bool> read_segment(const rpc::Json& answer, const std::vector<std::string>& macs);
// Of `tunnel`: where the ends of these NICs listen, by their MACs.
std::vector<DataPort> read_tunnel(const rpc::Json& answer, const std::vector<std::string>& macs);

// Of `survey`: what the other side says of itself; its texts are printable.
struct Survey {
    Findings findings; // a hundred at most
    bool at_home = false;
    bool kvm = false;
    Cpu cpu;
};
Survey read_survey(const rpc::Json& answer);

// Of `probe`: exactly so many ports.
struct ProbePorts {
    std::vector<uint16_t> tcp, udp;
};
ProbePorts read_probe(const rpc::Json& answer, size_t tcp, size_t udp);

struct PreparedDisk {
    DataPort at;
    std::string refusal_hash;
    bool empty = true; // nothing of it is there: no block needs to be compared
};
struct Prepared {
    std::vector<PreparedDisk> disks;
    std::optional<DataPort> memory;
};
// with_memory: it must be there.
Prepared read_prepare(const rpc::Json& answer, const DiskNames& disks, bool with_memory);

// Where its hypervisor waits for the rest of the memory, or why it does not.
struct MemoryAgain {
    MemoryWait wait = MemoryWait::waits;
    DataPort at;
};
MemoryAgain read_memory_again(const rpc::Json& answer);

// Of `take_over` and `records`.
std::vector<DiskStanding>
read_standings(const rpc::Json& answer, const char* method, const DiskNames& disks);

// The tokens, empty for a disk of which nothing is known there, and for all where nothing was
// prepared.
std::vector<std::string> read_refuse(const rpc::Json& answer, const DiskNames& disks);

struct ForwardKey {
    DataPort at;
    std::string psk_key;
};
std::vector<ForwardKey> read_forward_key(const rpc::Json& answer, const DiskNames& disks);

std::vector<DataPort> read_hashes(const rpc::Json& answer, const DiskNames& disks);

// What it tells unasked. Whatever else comes is no notice; nothing is thrown.
struct AgentNotice {
    enum class Kind { none, log, event };
    Kind kind = Kind::none;
    std::string level; // "info", "warning" or "error"
    std::string text;
};
AgentNotice read_notice(const rpc::Request& notification);

// For a terminal or a log: without control characters, and no longer than fits there.
std::string printable(std::string text);

} // namespace drover
