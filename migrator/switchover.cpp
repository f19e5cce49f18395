// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/switchover.h"

namespace drover {

asio::awaitable<void> Switchover::run() {
    quiesces_.resize(parts_.disks.size());
    lsns_.resize(parts_.disks.size());
    co_await parts_.steps->step(JournalStep::handover);
    std::vector<asio::awaitable<void>> draining;
    draining.push_back(hand_over());
    draining.push_back(parts_.steps->step(JournalStep::fence)); // beside what takes longer
    co_await all(std::move(draining));
    tell_(Moment::handed_over);

    tell_(Moment::fencing);
    std::vector<asio::awaitable<void>> fencing;
    fencing.push_back(fence_all());
    fencing.push_back(parts_.steps->step(JournalStep::promote));
    co_await all(std::move(fencing));
    tell_(Moment::fenced);

    if (parts_.plain) {
        tell_(Moment::promoted);
    } else if (parts_.vm->has_memory()) {
        // One round trip for both.
        std::vector<asio::awaitable<void>> both;
        both.push_back(promote());
        both.push_back(parts_.there->run(parts_.vm->was_paused()));
        co_await all(std::move(both));
    } else {
        co_await promote();
    }
    if (parts_.forwards) {
        co_await forward_all(parts_.disks);
    }
    tell_(Moment::running);
}

asio::awaitable<void> Switchover::hand_over() {
    if (!parts_.vm->has_memory()) {
        tell_(Moment::memory_sent);
        co_await quiesce_all();
        co_return;
    }
    std::vector<asio::awaitable<void>> last;
    last.push_back(finish_memory_and_quiesce());
    last.push_back(parts_.there->loaded());
    co_await all(std::move(last));
}

// The handover's frame says that nothing is written after it: so not before the hypervisor has
// let go of the disks.
asio::awaitable<void> Switchover::finish_memory_and_quiesce() {
    co_await parts_.vm->finish_memory();
    tell_(Moment::memory_sent);
    co_await quiesce_all();
}

// All drain together.
asio::awaitable<void> Switchover::quiesce_all() {
    std::vector<asio::awaitable<void>> disks;
    for (size_t i = 0; i < parts_.disks.size(); ++i) {
        disks.push_back(quiesce_disk(i));
    }
    co_await all(std::move(disks));
}

asio::awaitable<void> Switchover::quiesce_disk(size_t index) {
    std::string hash;
    if (index > 0) {
        hash = co_await parts_.disks.front()->token_hash();
    }
    const bool hold = !parts_.vm->has_memory();
    const DiskAtSource::Quiesced quiesced = co_await parts_.disks[index]->quiesce(hold, hash);
    quiesces_[index] = quiesced.id;
    lsns_[index] = quiesced.lsn;
}

// The first disk's record decides for all: without its fence there is none.
asio::awaitable<void> Switchover::fence_all() {
    token_ = co_await parts_.disks.front()->fence(quiesces_.front(), std::string());
    std::vector<asio::awaitable<void>> further;
    for (size_t i = 1; i < parts_.disks.size(); ++i) {
        further.push_back(fence_disk(i, token_));
    }
    co_await all(std::move(further));
}

asio::awaitable<void> Switchover::fence_disk(size_t index, std::string first_token) {
    co_await parts_.disks[index]->fence(quiesces_[index], first_token);
}

asio::awaitable<void> Switchover::promote() {
    co_await parts_.there->promote(token_);
    tell_(Moment::promoted);
}

asio::awaitable<void> forward_all(std::vector<DiskAtSource*> disks) {
    std::vector<asio::awaitable<void>> forwarding;
    for (DiskAtSource* const disk : disks) {
        forwarding.push_back(disk->forward());
    }
    co_await all(std::move(forwarding));
}

} // namespace drover
