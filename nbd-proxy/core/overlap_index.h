// SPDX-License-Identifier: GPL-2.0-or-later
// Which unacknowledged operation touched each byte last: what the after rule
// asks (docs/design.md, "The after rule").
#pragma once

#include "common/units.h"

#include <map>

namespace drover {

// Not thread-safe. Memory: an entry for each stretch of bytes that one
// unacknowledged operation touched last.
class OverlapIndex {
public:
    // LSNs are given in ascending order.
    void touch(Extent range, Lsn lsn);
    // The last operation that overlaps range; 0: none on record.
    Lsn last(Extent range) const;
    // What is at or below `watermark` within range is acknowledged: forget it.
    void forget(Extent range, Lsn watermark);
    void clear() { spans_.clear(); }
    size_t size() const { return spans_.size(); }

private:
    struct Span {
        uint64_t end = 0;
        Lsn lsn;
    };
    using Spans = std::map<uint64_t, Span>; // by offset; they do not overlap

    Spans::const_iterator first_overlapping(uint64_t offset) const;

    Spans spans_;
};

} // namespace drover
