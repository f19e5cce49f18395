// SPDX-License-Identifier: GPL-2.0-or-later
// What the control methods of a disk work on, whichever side of a migration it is.
#pragma once

#include "common/json_rpc.h"
#include "nbd-proxy/client_gone.h"
#include "nbd-proxy/core/block_map.h"
#include "nbd-proxy/disk.h"
#include "nbd-proxy/disk_record.h"
#include "nbd-proxy/nbd_client.h"

#include <array>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>

namespace drover {

struct EngineOptions {
    std::string file, uri; // exactly one
    std::string state_dir; // "": plain serving, nothing is replicated
    bool destination = false;
    bool read_only = false;
    uint64_t size = 0; // destination: the image is created with it
    uint32_t block_size = 64 * KiB;
    uint64_t log_memory = 64 * MiB;
    CacheMode cache = CacheMode::normal;
    std::chrono::milliseconds reconnect{30'000}; // uri: how long requests wait for its server
    ClientGone client_gone = {};
};

// The engine owns what this refers to, and both outlive whoever is given it.
struct DiskContext {
    const EngineOptions& options;
    std::mutex& control; // one control call at a time; taken before any other mutex
    DiskRecord& record;
    Backend& backend;
    Disk& disk;
    std::function<void()> changed; // something in `status` that a subscriber should see at once

    BlockGeometry geometry() const { return {backend.size(), options.block_size}; }
};

// The bytes of a text, cut or filled up with zeroes to N.
template <size_t N>
std::array<std::byte, N> bytes_of(const std::string& text) {
    std::array<std::byte, N> bytes{};
    std::memcpy(bytes.data(), text.data(), std::min(N, text.size()));
    return bytes;
}

// A UUID as text, dashes or not, to its 16 bytes.
std::array<std::byte, 16> uuid_bytes(std::string uuid);

// Files in the state directory with the key of a stream, of a `verify` under way, and of the way to
// an owner-to-be.
inline constexpr const char* stream_key = "stream-psk";
inline constexpr const char* verify_key = "verify-psk";
inline constexpr const char* early_key = "early-psk";

// Where a peer is, as the control methods are told (docs/control.md). Its key goes to the file
// key_name in the state directory. Throws Error.
NbdClientOptions
peer_options(const EngineOptions& options, const rpc::Json& to, const std::string& key_name);

// The parameter `migration`, as it is. Throws Error(usage) if it is no migration id.
std::string migration_param(const rpc::Json& params);

} // namespace drover
