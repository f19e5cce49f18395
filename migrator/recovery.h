// SPDX-License-Identifier: GPL-2.0-or-later
// After a migration that did not come to its end, whatever stopped it and wherever it stood: finds
// which side the VM belongs to, and then does what makes it run there and nowhere else. The
// coordinator's own way back, the guardian's, and `drover recover`; as switchover.h, only over the
// parts of sides.h. It may be run again at any time, also after it was killed itself.
//
// The first disk's records decide, nothing that anybody remembers:
//   source not fenced      cancel, durably: it goes on here. (Who loses that race to a fence looks
//                          again.)
//   fenced, and there      promoted: it belongs there. Else the destination refuses, durably, and
//                          shows by its token that it has: unfence, the first disk last, and
//                          resume.
//   fenced, nobody there   nothing that can be done from here is safe.
// Where an operator has forced one side, it has the larger generation, and the other side, once it
// can be asked, is fenced.
#pragma once

#include "migrator/switchover.h"

namespace drover {

enum class Verdict {
    here,      // the VM goes on at the source
    there,     // it belongs to the destination
    undecided, // neither may run it: why() says what is in the way
};

class Recovery {
public:
    struct Plan {
        std::string migration;
        // The operator answers for it that the destination has died. Used only where that does not
        // answer.
        bool force = false;
    };
    using Trouble = std::function<void(const std::string&)>;

    // trouble: told what could not be done, and decides nothing.
    Recovery(SwitchoverParts parts, Plan plan, Trouble trouble)
        : parts_(std::move(parts)), plan_(std::move(plan)), trouble_(std::move(trouble)) {}
    Recovery(const Recovery&) = delete;
    Recovery& operator=(const Recovery&) = delete;

    // Once. After `there`, let_go() is still to come.
    asio::awaitable<Verdict> run();

    const std::string& why() const { return why_; }
    // `undecided`, because the destination does not answer.
    bool is_unanswered() const { return unanswered_; }
    // The source has just taken its disks back without an answer: should the destination return, it
    // must be told.
    bool forced() const { return forced_; }
    // `here`: not all is done, so it has to be run again: the destination could not be told, and
    // has yet to clean up or must hear it should it return, or the VM's hypervisor is there, but
    // does not run it.
    bool more_to_do() const { return refusal_owed_ || forced_ || stuck_; }
    // `here`: the last of these.
    bool stuck() const { return stuck_; }
    // `here`: the VM goes on. Else its disks are this host's, but it could not be resumed.
    bool runs_here() const { return runs_here_; }
    // `there`: it runs. Else it belongs there, and can't be run.
    bool runs_there() const { return runs_there_; }

private:
    asio::awaitable<Verdict> decide();
    asio::awaitable<bool> cancel_all();
    asio::awaitable<void> follow_first(DiskAtSource& disk);
    asio::awaitable<bool> supersede_rest(uint64_t generation);
    asio::awaitable<Verdict> stay_here();
    asio::awaitable<Verdict> ask_there(uint64_t generation);
    asio::awaitable<Verdict> go_there(std::vector<DiskStanding> standings);
    asio::awaitable<bool> run_there();
    asio::awaitable<Verdict> take_back();
    asio::awaitable<Verdict> take_by_force(std::string reason);
    asio::awaitable<void> unfence_disk(size_t index, std::string token);
    asio::awaitable<void> resume();
    asio::awaitable<void> look_at(DiskAtSource& disk);
    asio::awaitable<void> look_at_all();
    asio::awaitable<void> refuse_there();
    asio::awaitable<Verdict> settle_owners();
    asio::awaitable<void> note(JournalStep step);
    DiskAtSource& first() const { return *parts_.disks.front(); }

    const SwitchoverParts parts_;
    const Plan plan_;
    const Trouble trouble_;
    std::string why_;
    bool unanswered_ = false, forced_ = false, refusal_owed_ = false, stuck_ = false,
         runs_here_ = false, runs_there_ = false;
};

// After the VM runs at the destination: what is left of it at the source is put away, and both
// sides know that it is over. To the end, whatever fails.
asio::awaitable<void> let_go(SwitchoverParts parts, Recovery::Trouble trouble);

} // namespace drover
