// SPDX-License-Identifier: GPL-2.0-or-later
// What the clients of a disk asked for and when, and whether a copy of the disk
// can be explained by it.
#pragma once

#include "common/units.h"

#include <cstddef>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace drover::model {

inline constexpr uint64_t sector = 512;

enum class Kind : uint8_t { write, zero, trim };

// Times are of one monotonic clock, in nanoseconds.
struct Request {
    Kind kind = Kind::write;
    Extent where;              // whole sectors; the disk's last one may be cut
    uint64_t started = 0;      // before it was sent
    uint64_t answered = ~0ULL; // after the answer came; ~0: not yet, or never
};

uint64_t now_ns();

// Each sector says which request wrote it, and where.
void fill(std::span<std::byte> data, uint64_t offset, uint64_t request);
// The number of the request that wrote this; 0: zeroes. Throws std::runtime_error for anything
// else.
uint64_t writer_of(std::span<const std::byte> data, uint64_t offset);

// Thread-safe.
class Requests {
public:
    // The disk as it was before the first request: written by request number 1, and zero elsewhere.
    explicit Requests(uint64_t disk_size);

    // Its number, from 2 on. Before it is sent.
    uint64_t start(Kind kind, Extent where);
    void answered(uint64_t request);

    // Whether `disk` is a prefix of the acknowledged order: there is a moment such that everything
    // answered before it is there, and nothing that began after it. at_least: everything that was
    // answered before this has to be there. "": it is; else what is wrong.
    //
    // Requests whose times overlap may have come in any order, and the last one may be there in
    // part.
    std::string explain(std::span<const std::byte> disk, uint64_t at_least) const;

    size_t count() const;

private:
    std::string check_sector(uint64_t index,
                             uint64_t visible,
                             uint64_t moment,
                             const std::vector<Request>& requests,
                             const std::vector<uint32_t>& covering) const;

    const uint64_t disk_size_;
    mutable std::mutex mutex_;
    std::vector<Request> requests_;
};

} // namespace drover::model
