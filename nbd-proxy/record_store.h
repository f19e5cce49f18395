// SPDX-License-Identifier: GPL-2.0-or-later
// The ownership record on disk, and the marker on the image that it belongs to
// (docs/state-files.md). A record that does not fit its image is refused, never
// guessed at and never written over.
#pragma once

#include "common/secrets.h"
#include "common/unique_fd.h"
#include "nbd-proxy/core/ownership.h"

#include <optional>
#include <string>
#include <string_view>

namespace drover {

// The record that a step leads to. Throws Error where it was refused.
Record accept(Step step);

struct RecordStoreOptions {
    // The raw image file, or a block device, which carries no marker; "" for an NBD server.
    // Of an image that is set aside: the path that it had.
    std::string image;
    std::string state_dir; // made where it is missing, mode 0700
    // false (role=source): a disk without a record becomes one of our own: a new UUID, owner,
    // generation 1. true (role=destination): it stays blank, with nothing written, until it is
    // prepared; the image need not exist before the first save then.
    bool destination = false;
    std::string machine_id; // "": that of /etc/machine-id; "-": none
    StepHook step;          // for tests: throws, as if the machine had crashed there
};

// Not thread-safe: its owner holds a mutex, not one that the guest's path takes (every call
// but the const ones waits for the disk). One process at a time: the state directory is locked
// until destruction; a forked child (nbdkit's) keeps the lock.
class RecordStore {
public:
    // Throws Error(refused) where record, marker and image do not belong together, with what
    // to do about it; Error(state) where another process has the state directory or the
    // record's role is not for this use; Error(io).
    // What record() is afterwards is at_start of what was on disk, and durable; but a replica that
    // mark_clean has left stays consistent.
    static RecordStore open(const RecordStoreOptions& options);

    const Record& record() const { return record_; }

    // Durable when it returns. On Error(io) assume neither the old nor the new record: answer
    // the request with the error; saving again is the way out. The fields under "the image" are
    // RecordStore's and are filled in. In a file system that has run full there is room for one more.
    void save(const Record& record);

    // Where the image is now: options.image, or where it was set aside.
    std::string image_path() const;

    // Whether, when this was opened, the image was as mark_clean had left it. Only for files.
    bool was_clean() const { return was_clean_; }
    // Call it with everything flushed and no writer left. A save takes it back, but of a fenced
    // image.
    void mark_clean();

    // The image of a fenced source, or of a refused replica that is to be kept: no write
    // permission, renamed to PATH.fenced-G, so that nobody who knows nothing of us writes it. Can
    // be called again after a failure; nothing to do without an image file.
    void set_aside();
    // The same, and then fsync and the clean mark.
    void fence_image();
    // The way back; open does it where the role needs the image in its place.
    void unfence_image();

    // "" or why the image could not be marked at the last try (for the log). The record holds all
    // the same; the next open tries again.
    const std::string& marker_problem() const { return marker_problem_; }

private:
    explicit RecordStore(const RecordStoreOptions& options);
    void load();
    void check_image(const Record& stored);
    void write(Record next);
    void keep_room() const;
    void write_marker();
    void step(std::string_view what) const;
    std::string record_path() const;
    std::string room_path() const;

    RecordStoreOptions options_;
    std::string image_; // "": not a file, so there is no marker, inode or name to care for
    UniqueFd lock_;
    Record record_;
    bool was_clean_ = false;
    std::string marker_problem_;
};

// The record in a state directory that another process may have open; nullopt if there is none.
// Throws as open does where it can't be read.
std::optional<Record> peek_record(const std::string& state_dir);

// Removes the image of a fenced source whose migration is over, and returns its path; the record
// stays, and knows the disk when it comes back. Throws Error(refused) where there is none,
// Error(state) while a process serves it, Error(io).
std::string release_image(const std::string& state_dir);

// The file's bytes. parse_record throws Error(refused) for what is damaged, foreign or of a newer
// format; `name` is the file's, for the text.
std::string serialize_record(const Record& record);
Record parse_record(std::string_view bytes, const std::string& name);

} // namespace drover
