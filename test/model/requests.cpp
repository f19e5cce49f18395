// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/model/requests.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

namespace drover::model {
namespace {

// What every 8 bytes of a sector are, but for its head.
uint64_t filler(uint64_t request, uint64_t offset, uint64_t word) {
    return (request * 0x9e3779b97f4a7c15 ^ offset) + word * 0x100000001b3;
}

void make_sector(std::byte* to, uint64_t length, uint64_t offset, uint64_t request) {
    uint64_t words[sector / sizeof(uint64_t)];
    words[0] = request;
    words[1] = offset;
    for (size_t i = 2; i < std::size(words); ++i) {
        words[i] = filler(request, offset, i);
    }
    std::memcpy(to, words, length);
}

const char* name_of(Kind kind) {
    return kind == Kind::write ? "write" : kind == Kind::zero ? "zero" : "trim";
}

} // namespace

uint64_t now_ns() {
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

void fill(std::span<std::byte> data, uint64_t offset, uint64_t request) {
    for (uint64_t at = 0; at < data.size(); at += sector) {
        make_sector(&data[at], std::min(sector, data.size() - at), offset + at, request);
    }
}

uint64_t writer_of(std::span<const std::byte> data, uint64_t offset) {
    if (std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; })) {
        return 0;
    }
    uint64_t request = 0;
    std::memcpy(&request, data.data(), std::min(data.size(), sizeof request));
    std::byte expected[sector];
    make_sector(expected, data.size(), offset, request);
    if (std::memcmp(expected, data.data(), data.size()) != 0) {
        throw std::runtime_error(fmt::format(
            "the sector at {} is torn or was never written so (head {:#x})", offset, request));
    }
    return request;
}

Requests::Requests(uint64_t disk_size) : disk_size_(disk_size) {
    requests_.push_back({});                                   // no request has the number 0
    requests_.push_back({Kind::write, {0, disk_size_}, 0, 0}); // the content at the start
}

uint64_t Requests::start(Kind kind, Extent where) {
    const std::lock_guard lock(mutex_);
    requests_.push_back({kind, where, now_ns(), ~0ULL});
    return requests_.size() - 1;
}

void Requests::answered(uint64_t request) {
    const std::lock_guard lock(mutex_);
    requests_[request].answered = now_ns();
}

size_t Requests::count() const {
    const std::lock_guard lock(mutex_);
    return requests_.size() - 2;
}

// A request that covers the sector, began after everything that can have left it as it is was
// answered, and was answered itself before the moment, is missing.
std::string Requests::check_sector(uint64_t index,
                                   uint64_t visible,
                                   uint64_t moment,
                                   const std::vector<Request>& requests,
                                   const std::vector<uint32_t>& covering) const {
    // Zeroes may be of any zero or trim, or were always there.
    uint64_t latest = visible > 0 ? requests[visible].answered : 0;
    if (visible == 0) {
        for (const uint32_t number : covering) {
            const Request& request = requests[number];
            if (request.kind != Kind::write) {
                latest = std::max(latest, request.answered);
            }
        }
    }
    for (const uint32_t number : covering) {
        const Request& request = requests[number];
        const bool same = visible == 0 ? request.kind != Kind::write : number == visible;
        if (!same && request.started > latest && request.answered < moment) {
            return fmt::format(
                "sector {} holds request {} ({}), but request {} ({} {}+{}) came after that and "
                "was answered {:.3f} ms before the moment that the disk shows",
                index,
                visible,
                visible == 0 ? "zeroes" : name_of(requests[visible].kind),
                number,
                name_of(request.kind),
                request.where.offset,
                request.where.length,
                static_cast<double>(moment - request.answered) / 1e6);
        }
    }
    return "";
}

std::string Requests::explain(std::span<const std::byte> disk, uint64_t at_least) const {
    std::vector<Request> requests;
    {
        const std::lock_guard lock(mutex_);
        requests = requests_;
    }
    if (disk.size() != disk_size_) {
        return fmt::format("{} bytes, not {}", disk.size(), disk_size_);
    }
    const uint64_t sectors = (disk_size_ + sector - 1) / sector;
    std::vector<std::vector<uint32_t>> covering(sectors);
    for (uint32_t number = 2; number < requests.size(); ++number) {
        const Extent where = requests[number].where;
        for (uint64_t s = where.offset / sector; s * sector < where.end(); ++s) {
            covering[s].push_back(number);
        }
    }
    std::vector<uint64_t> visible(sectors);
    uint64_t moment = at_least;
    try {
        for (uint64_t s = 0; s < sectors; ++s) {
            const uint64_t offset = s * sector;
            visible[s] =
                writer_of(disk.subspan(offset, std::min(sector, disk_size_ - offset)), offset);
            if (visible[s] >= requests.size() ||
                (visible[s] > 0 && requests[visible[s]].kind != Kind::write)) {
                return fmt::format(
                    "sector {} holds request {}, which there never was", s, visible[s]);
            }
            moment = std::max(moment, requests[visible[s]].started);
        }
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    for (uint64_t s = 0; s < sectors; ++s) {
        if (const std::string wrong = check_sector(s, visible[s], moment, requests, covering[s]);
            !wrong.empty()) {
            return wrong;
        }
    }
    return "";
}

} // namespace drover::model
