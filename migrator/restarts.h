// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "migrator/async.h"

#include <optional>

namespace drover {

// Whether a process that has ended is started again: not one that ends as soon as it runs.
class Restarts {
public:
    // It has ended.
    bool worth_it(Deadline now) {
        early_ = last_ && now - *last_ < lifetime ? early_ + 1 : 0;
        last_ = now;
        return early_ < most_early;
    }

private:
    static constexpr std::chrono::seconds lifetime{10}; // of one that did its work
    static constexpr unsigned most_early = 3;           // that did not, in a row

    std::optional<Deadline> last_;
    unsigned early_ = 0;
};

} // namespace drover
