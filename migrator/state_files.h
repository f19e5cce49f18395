// SPDX-License-Identifier: GPL-2.0-or-later
// The bytes of what lies in $DROVER_STATE/VM and $DROVER_RUN/VM: the journal's lines, the locks'
// and the disks' notes, the VM file of a VM that came in and the report, read and made without any
// I/O (docs/state-files.md has the formats).
#pragma once

#include "common/json_rpc.h"

#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace drover {

// What a migration is about to do, in this order on the way forward.
enum class JournalStep {
    prepare,   // the destination is told of it
    replicate, // the streams begin
    memory,    // the hypervisors are set up; from here the VM may be paused
    handover,
    fence,
    promote, // and run
    verify,
    finish,
    release, // the source's image goes
    // Ways back and out.
    cancel,
    refuse,
    unfence,
    force, // the operator said that the other side has died
    resume,
    over,
};
std::string_view step_name(JournalStep step);

// What a journal says; a later line goes before an earlier one.
struct JournalContent {
    rpc::Json facts = rpc::Json::object(); // of all lines but their steps
    std::optional<JournalStep> last;       // the last step
    bool over() const { return last == JournalStep::over; }
    // "" where it is missing.
    std::string text(const char* key) const;
    // Of one more line. Throws Error(refused) for what no line says; `name` is the file's.
    void take(const rpc::Json& line, const std::string& name);
};

// The first line says this too.
rpc::Json journal_head(const std::string& side, const rpc::Json& facts);
std::string journal_line(const rpc::Json& json);
// Throws Error(refused) for what is damaged, foreign or newer; `name` is the file's, for the text.
JournalContent parse_journal(std::string_view bytes, const std::string& name);

// Who has a lock, or had it last.
struct LockHolder {
    pid_t pid = 0;
    uint64_t started = 0; // of the process, in ticks since the boot
    std::string what;     // "migrate", "recover", "guardian", "agent"
    std::string migration;
    bool operator==(const LockHolder&) const = default;
};

std::string lock_note(const LockHolder& holder);
// nullopt where nobody is named: an empty file, or a note that a crash left unfinished. Throws
// Error(refused) for another program's file, or that of a newer drover.
std::optional<LockHolder> parse_lock_note(std::string_view bytes, const std::string& name);

// The process that serves a disk, and its TCP port.
struct DiskNote {
    pid_t pid = 0;
    uint16_t port = 0;
    bool operator==(const DiskNote&) const = default;
};

std::string disk_note(const DiskNote& note);
// Throws Error(refused) for what is damaged, foreign or newer; `name` is the file's.
DiskNote parse_disk_note(std::string_view bytes, const std::string& name);

// The report of a migration, as it is kept.
std::string kept_report(rpc::Json report);
// Throws as parse_disk_note.
void check_kept_report(std::string_view bytes, const std::string& name);

// The VM file of a VM that came in: its text behind a line, a comment in TOML, with a checksum.
std::string arrived_vm_text(const std::string& toml);
// Throws Error(refused) for what is damaged, edited, foreign or newer; `name` is the file's, and
// `editable` the one that an operator may edit instead.
void check_arrived_vm_text(std::string_view bytes,
                           const std::string& name,
                           const std::string& editable);

} // namespace drover
