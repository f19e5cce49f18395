// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/overlap_index.h"

namespace drover {

OverlapIndex::Spans::const_iterator OverlapIndex::first_overlapping(uint64_t offset) const {
    auto it = spans_.upper_bound(offset);
    if (it != spans_.begin() && std::prev(it)->second.end > offset) {
        --it;
    }
    return it;
}

void OverlapIndex::touch(Extent range, Lsn lsn) {
    auto it = first_overlapping(range.offset);
    while (it != spans_.end() && it->first < range.end()) {
        const auto [begin, span] = *it;
        it = spans_.erase(it);
        if (begin < range.offset) {
            spans_.emplace_hint(it, begin, Span{range.offset, span.lsn});
        }
        if (span.end > range.end()) {
            it = spans_.emplace_hint(it, range.end(), span);
        }
    }
    spans_.emplace_hint(it, range.offset, Span{range.end(), lsn});
}

Lsn OverlapIndex::last(Extent range) const {
    Lsn last;
    for (auto it = first_overlapping(range.offset); it != spans_.end() && it->first < range.end();
         ++it) {
        last = std::max(last, it->second.lsn);
    }
    return last;
}

void OverlapIndex::forget(Extent range, Lsn watermark) {
    auto it = first_overlapping(range.offset);
    while (it != spans_.end() && it->first < range.end()) {
        it = it->second.lsn <= watermark ? spans_.erase(it) : std::next(it);
    }
}

} // namespace drover
