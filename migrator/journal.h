// SPDX-License-Identifier: GPL-2.0-or-later
// What a migration has set up and is about to do, on disk, so that whoever comes after its
// coordinator, or its agent, knows where to ask and what to put away (docs/state-files.md). It
// never decides who owns a disk: the disks' records do.
//
// A file of lines, each with its checksum: first what is known from the beginning, then the steps,
// each durable before it is taken, and what else becomes known. A line that a crash left unfinished
// is as if it had not been written.
#pragma once

#include "common/unique_fd.h"
#include "migrator/sides.h"

#include <optional>
#include <string>

namespace drover {

// nullopt if there is none. Throws as parse_journal, and Error(io).
std::optional<JournalContent> read_journal(const std::string& path);

// Whoever has it holds the lock of its VM and side (run_lock.h).
class Journal : public StepLog {
public:
    // A new one. Throws Error(state) if there is one that is not over, Error(refused) for one that
    // can't be read, Error(io). `side`: "source" or "destination".
    static std::unique_ptr<Journal>
    create(const std::string& path, std::string side, const rpc::Json& facts);
    // To go on with one.
    static std::unique_ptr<Journal> go_on(const std::string& path);

    // Durable. Throws Error(io), also ever after one that has failed: nobody knows how much of it
    // is there.
    asio::awaitable<void> step(JournalStep step) override;
    void note(const rpc::Json& facts);
    // As step(over), for those that have no event loop. Nothing to do if there is none, or it is.
    static void end(const std::string& path);

    const JournalContent& content() const { return content_; }

private:
    Journal(std::string path, std::string side, UniqueFd file, JournalContent content)
        : path_(std::move(path)), side_(std::move(side)), file_(std::move(file)),
          content_(std::move(content)) {}
    void append(const rpc::Json& line);

    const std::string path_, side_;
    UniqueFd file_;
    JournalContent content_;
    bool failed_ = false;
};

// For recoveries that have no journal: nothing is kept.
class NoJournal : public StepLog {
public:
    asio::awaitable<void> step(JournalStep step) override;
};

} // namespace drover
