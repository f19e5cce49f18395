// SPDX-License-Identifier: GPL-2.0-or-later
// Disks of a simulation: what they hold, what of it would survive a crash, and
// what the source's held after each of its guest's requests.
#pragma once

#include "common/units.h"
#include "test/sim/task.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

namespace drover::sim {

using Content = std::vector<std::byte>;

inline constexpr uint64_t sector = 512; // what a crash keeps or loses as a whole
inline constexpr uint64_t hole_unit = 4096;

// An image, with the cache of its host, which dies with that.
class CachedDisk {
public:
    explicit CachedDisk(Content content)
        : now_(std::move(content)), safe_(now_), holes_(now_.size() / hole_unit + 1) {}

    const Content& now() const { return now_; }
    uint64_t size() const { return now_.size(); }
    uint64_t changes() const { return changes_; }
    void write(uint64_t offset, const std::byte* data, uint64_t length) {
        std::memcpy(now_.data() + offset, data, length);
        changed({offset, length}, false);
    }
    void zero(Extent where, bool punch) {
        std::memset(now_.data() + where.offset, 0, where.length);
        changed(where, punch);
    }
    bool hole(Extent range) const {
        for (uint64_t unit = range.offset / hole_unit; unit * hole_unit < range.end(); ++unit) {
            if (!holes_[unit]) {
                return false;
            }
        }
        return true;
    }
    // What reads as zeroes there may be a hole from the beginning.
    void dig(uint64_t unit) {
        const auto begin = now_.begin() + static_cast<ptrdiff_t>(unit * hole_unit);
        const auto end =
            now_.begin() + static_cast<ptrdiff_t>(std::min(size(), (unit + 1) * hole_unit));
        holes_[unit] = std::all_of(begin, end, [](std::byte b) { return b == std::byte{0}; });
    }

    // An fsync covers what was written before it began: its end is told this number.
    size_t begin_sync() const { return done_ + unsafe_.size(); }
    void end_sync(size_t mark) {
        for (; done_ < mark; ++done_) {
            keep(unsafe_.front());
            unsafe_.pop_front();
        }
    }
    // One that fails takes what it covers for written, and that is in the cache alone now.
    void fail_sync(size_t mark) {
        for (; done_ < mark; ++done_) {
            lost_.push_back(unsafe_.front());
            unsafe_.pop_front();
        }
    }

    // What is there is synced, and read from storage again: what a sync has lost before is lost.
    void reread() {
        end_sync(begin_sync());
        for (const Extent& range : lost_) {
            std::memcpy(now_.data() + range.offset, safe_.data() + range.offset, range.length);
            changed(range, false);
        }
        lost_.clear();
    }

    // The host dies: of what was not synced any sectors may be there or not.
    void crash(Random& random) {
        unsafe_.insert(unsafe_.end(), lost_.begin(), lost_.end());
        for (const Extent& range : unsafe_) {
            for (uint64_t at = round_down(range.offset, sector); at < range.end(); at += sector) {
                if (random.chance(50)) {
                    const uint64_t begin = std::max(at, range.offset);
                    keep({begin, std::min(at + sector, range.end()) - begin});
                }
            }
        }
        done_ += unsafe_.size() - lost_.size();
        unsafe_.clear();
        lost_.clear();
        now_ = safe_;
        // A hole may have been filled, or not been punched yet.
        std::fill(holes_.begin(), holes_.end(), false);
        ++changes_;
    }
    // What is there if a crash loses all that it may.
    const Content& safe() const { return safe_; }

private:
    void changed(Extent where, bool punch) {
        ++changes_;
        unsafe_.push_back(where);
        for (uint64_t unit = where.offset / hole_unit; unit * hole_unit < where.end(); ++unit) {
            const bool whole = unit * hole_unit >= where.offset &&
                               std::min((unit + 1) * hole_unit, size()) <= where.end();
            holes_[unit] = punch ? holes_[unit] || whole : false;
        }
    }
    void keep(Extent range) {
        std::memcpy(safe_.data() + range.offset, now_.data() + range.offset, range.length);
    }

    Content now_, safe_;
    std::vector<bool> holes_; // by hole_unit
    uint64_t changes_ = 1;
    std::deque<Extent> unsafe_; // written, not synced, oldest first
    size_t done_ = 0;           // how many were before those
    std::vector<Extent> lost_;  // by a sync that failed
};

// The source's disk after each finished request, in the order in which they finished.
class History {
public:
    explicit History(Content content) : first_(content), at_(std::move(content)) {}

    // What the range holds now that a request on it has finished.
    void add(Extent where, const Content& disk) {
        steps_.push_back({where.offset,
                          Content(disk.begin() + static_cast<ptrdiff_t>(where.offset),
                                  disk.begin() + static_cast<ptrdiff_t>(where.end()))});
    }
    // Whether a disk is as it was after some request, no earlier than the one found last.
    bool has(const Content& disk) {
        if (at_ == disk) {
            return true;
        }
        const size_t position = position_;
        const Content before = at_;
        while (at_ != disk) {
            if (position_ == steps_.size()) {
                position_ = position;
                at_ = before;
                return false;
            }
            const Step& step = steps_[position_++];
            std::copy(step.after.begin(),
                      step.after.end(),
                      at_.begin() + static_cast<ptrdiff_t>(step.offset));
        }
        return true;
    }
    void from_the_start() {
        at_ = first_;
        position_ = 0;
    }
    size_t position() const { return position_; }
    size_t size() const { return steps_.size(); }

private:
    struct Step {
        uint64_t offset;
        Content after;
    };
    Content first_, at_;
    size_t position_ = 0;
    std::vector<Step> steps_;
};

} // namespace drover::sim
