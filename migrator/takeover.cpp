// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/takeover.h"

#include <algorithm>

namespace drover {

DiskStanding standing_in(const Record& record) {
    DiskStanding standing;
    standing.role = record.role;
    standing.stage = record.stage;
    standing.generation = record.generation;
    standing.migration = record.migration;
    standing.may_have_run = record.may_have_run;
    return standing;
}

bool is_promoted_by(const DiskStanding& standing, const std::string& migration) {
    return standing.migration == migration && standing.role != Role::replica &&
           (standing.stage == Stage::promoted || standing.stage == Stage::over);
}

asio::awaitable<std::vector<DiskStanding>> Takeover::standing() {
    std::vector<DiskStanding> standings;
    for (DiskAtDestination* const disk : parts_.disks) {
        DiskStanding one = co_await disk->standing();
        standings.push_back(std::move(one));
    }
    promoted_ = is_promoted_by(standings.front(), migration_);
    may_run_ = std::all_of(standings.begin(), standings.end(), [this](const DiskStanding& one) {
        return is_promoted_by(one, migration_) && one.may_have_run;
    });
    co_return standings;
}

asio::awaitable<void> Takeover::promote(std::string token) {
    if (parts_.vm != nullptr && !promoted_ && !parts_.vm->ready()) {
        throw Error(ErrorKind::state, "promote: the hypervisor does not hold the memory");
    }
    co_await parts_.steps->step(JournalStep::promote);
    co_await parts_.disks.front()->promote(token);
    promoted_ = true;
    std::vector<asio::awaitable<void>> further;
    for (size_t i = 1; i < parts_.disks.size(); ++i) {
        further.push_back(parts_.disks[i]->promote(token));
    }
    co_await all_to_the_end(std::move(further));
    may_run_ = true;
}

asio::awaitable<void> Takeover::run(bool paused) {
    if (!may_run_) {
        throw Error(ErrorKind::state, "run: it was not promoted");
    }
    if (parts_.vm == nullptr) {
        co_return;
    }
    std::exception_ptr failure;
    try {
        co_await parts_.vm->run(paused);
    } catch (const std::exception&) {
        failure = std::current_exception();
    }
    if (!failure) {
        co_return;
    }
    if (!parts_.vm->may_have_run()) {
        // Then the source's memory is as good as it was. The first disk's record decides, so the
        // others, which are refused after it, come before.
        may_run_ = false;
        for (size_t i = parts_.disks.size(); i-- > 0;) {
            co_await parts_.disks[i]->did_not_run();
        }
    }
    std::rethrow_exception(failure);
}

asio::awaitable<std::vector<std::string>> Takeover::refuse() {
    co_await parts_.steps->step(JournalStep::refuse);
    std::vector<std::string> tokens;
    // The first disk's record decides: after it nothing can be promoted.
    for (DiskAtDestination* const disk : parts_.disks) {
        std::string token = co_await disk->refuse();
        tokens.push_back(std::move(token));
    }
    promoted_ = may_run_ = false;
    refused_ = true;
    if (parts_.vm != nullptr) {
        co_await parts_.vm->destroy();
    }
    co_return tokens;
}

asio::awaitable<void> Takeover::finish() {
    const DiskStanding first = co_await parts_.disks.front()->standing();
    promoted_ = is_promoted_by(first, migration_);
    if (first.migration != migration_) {
        co_return; // it has moved on since
    }
    if (!promoted_) {
        throw Error(ErrorKind::state, "finish: it was not promoted");
    }
    co_await parts_.steps->step(JournalStep::finish);
    for (DiskAtDestination* const disk : parts_.disks) {
        co_await disk->finish();
    }
}

} // namespace drover
