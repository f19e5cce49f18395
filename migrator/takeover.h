// SPDX-License-Identifier: GPL-2.0-or-later
// The destination's half of a switchover: what its agent does when it is asked to promote,
// run or refuse, and when nobody asks any more. As switchover.h, only over the parts of sides.h.
// One call at a time.
#pragma once

#include "migrator/sides.h"

namespace drover {

class Takeover {
public:
    // Whatever is null or empty is not there (yet). They outlive it.
    struct Parts {
        std::vector<DiskAtDestination*> disks; // the first one's record decides for all
        VmAtDestination* vm = nullptr;         // null: the VM does not come here
        StepLog* steps = nullptr;
    };
    Takeover(Parts parts, std::string migration)
        : parts_(std::move(parts)), migration_(std::move(migration)) {}
    Takeover(const Takeover&) = delete;
    Takeover& operator=(const Takeover&) = delete;

    asio::awaitable<std::vector<DiskStanding>> standing();
    asio::awaitable<void> promote(std::string token);
    asio::awaitable<void> run(bool paused);
    // The tokens, in the order of the disks.
    asio::awaitable<std::vector<std::string>> refuse();
    asio::awaitable<void> finish();

    // By this migration, as far as is known here: the first disk's record decides.
    bool promoted() const { return promoted_; }
    // Nothing of it can come to life here any more.
    bool refused() const { return refused_; }

private:
    const Parts parts_;
    const std::string migration_;
    bool promoted_ = false, refused_ = false;
    bool may_run_ = false; // every disk is promoted, and none of them holds its writes
};

// in_use is not in a record.
DiskStanding standing_in(const Record& record);

// The disk belongs here by this migration.
bool is_promoted_by(const DiskStanding& standing, const std::string& migration);

} // namespace drover
