// SPDX-License-Identifier: GPL-2.0-or-later
// What this host has, as far as a VM that moves asks for it. Reads /proc, /sys and the file
// systems, and changes nothing; any thread. What can't be read is not there.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace drover {

// Its own, without a domain.
std::string host_name();

// As a command's first word is looked up.
bool has_program(const std::string& word);

// Bytes that programs can still get without swapping.
std::optional<uint64_t> available_memory();
std::optional<uint64_t> parse_available_memory(std::string_view meminfo);

// The first processor of /proc/cpuinfo.
struct Cpu {
    std::string model;
    std::set<std::string> flags;
};
Cpu this_cpu();
Cpu parse_cpuinfo(std::string_view text);

// It is there, and may be opened to read and write.
bool has_device(const char* path);
bool is_bridge(const std::string& interface);

// The file system that a file is on or would be made on: of the nearest folder that is there.
struct Space {
    std::string folder;
    uint64_t device = 0; // the same for the same file system
    uint64_t free_bytes = 0;
    bool writable = false; // by this process, by permission
};
std::optional<Space> space_for(const std::string& file);
// Bytes on the file system; 0 where there is no such regular file.
uint64_t allocated_bytes(const std::string& file);
// Bytes of a block device; nullopt where there is none.
std::optional<uint64_t> device_size(const std::string& path);

} // namespace drover
