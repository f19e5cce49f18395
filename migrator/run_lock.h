// SPDX-License-Identifier: GPL-2.0-or-later
// One coordinator, guardian or recovery of a VM at a time at its source, and one agent at its
// destination: a lock that ends with its process, and a note in it of who has it.
#pragma once

#include "common/unique_fd.h"
#include "migrator/async.h"
#include "migrator/state_files.h"

#include <optional>
#include <string>

#include <sys/types.h>

namespace drover {

class RunLock {
public:
    // path: the file, which stays. Throws Error(io).
    explicit RunLock(std::string path) : path_(std::move(path)) {}

    // false: somebody else has it. Throws Error(refused) for a file that is no lock of ours.
    bool try_lock(const std::string& what);
    asio::awaitable<bool> lock_within(std::string what, milliseconds patience);
    // Who has it, or had it last. Throws as try_lock.
    std::optional<LockHolder> holder() const;
    // The process that has it noted is there still. For telling about it: to know, take the lock.
    bool is_held() const;
    // Under the lock.
    void note_migration(const std::string& migration);
    // Its holder has something to live for still. Nothing where it has no lock.
    void touch() const;
    // Since it was taken, or touched, by whoever has it; by the host's clock.
    std::chrono::seconds untouched_for() const;

private:
    void write_note(const std::string& migration);

    std::string path_, what_;
    UniqueFd fd_;
};

// Ticks since the boot at which a process has started; nullopt if it is not there. With its pid,
// that tells a process from all others of this boot.
std::optional<uint64_t> start_of_process(pid_t pid);
// Ends a process that is still the one that was noted: SIGTERM, and SIGKILL where `patience` does
// not help. true: it is gone.
asio::awaitable<bool> end_process(pid_t pid, uint64_t started, milliseconds patience);

} // namespace drover
