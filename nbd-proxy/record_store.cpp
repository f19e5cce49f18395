// SPDX-License-Identifier: GPL-2.0-or-later
// The order of every save: the record first, durably, then the marker. So a crash leaves a
// marker that is as old as the record or older, which the next open mends; a
// marker that is newer tells that an old record was put back.
#include "nbd-proxy/record_store.h"

#include "nbd-proxy/image_marker.h"

#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr mode_t write_bits = 0222;
// Of a record, which may grow, and its directory entry.
constexpr off_t room_bytes = 65536;

// Through symbolic links: what is renamed is the file that they lead to.
std::string absolute(const std::string& path) {
    std::error_code error;
    const auto whole = std::filesystem::absolute(path, error);
    const auto direct = error ? whole : std::filesystem::weakly_canonical(whole, error);
    if (error) {
        throw_errno(path, error.value());
    }
    // A trailing slash would leave an empty last part.
    return (direct.has_filename() ? direct : direct.parent_path()).string();
}

std::string record_path_in(const std::string& state_dir) {
    return state_dir + "/record";
}

std::optional<struct stat> stat_of(const std::string& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
        return status;
    }
    if (errno != ENOENT) {
        throw_errno(path);
    }
    return std::nullopt;
}

CleanMark clean_mark_of(const struct stat& status) {
    const auto nanoseconds = [](const struct timespec& time) {
        return int64_t(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
    };
    return {status.st_dev,
            status.st_ino,
            uint64_t(status.st_size),
            nanoseconds(status.st_mtim),
            nanoseconds(status.st_ctim)};
}

void sync_path(const std::string& path, int flags) {
    const UniqueFd fd(::open(path.c_str(), flags | O_RDONLY | O_CLOEXEC));
    if (!fd) {
        throw_errno(path);
    }
    if (::fsync(fd.get()) != 0) {
        throw_errno(fmt::format("fsync of {}", path));
    }
}

// Neither loses a file that stands where the other goes.
void rename_image(const std::string& from, const std::string& to) {
    if (stat_of(to)) {
        throw Error(
            ErrorKind::io,
            fmt::format("can't rename {} to {}: there is such a file; move it away", from, to),
            EEXIST);
    }
    if (::rename(from.c_str(), to.c_str()) != 0) {
        throw_errno(fmt::format("renaming {} to {}", from, to));
    }
    sync_path(std::filesystem::path(to).parent_path(), O_DIRECTORY);
}

std::string machine_id_of_host() {
    std::string id = read_whole_file("/etc/machine-id").value_or("");
    while (!id.empty() && id.back() == '\n') {
        id.pop_back();
    }
    return id;
}

char marker_role(const Record& record) {
    switch (record.role) {
    case Role::owner:
        return 'o';
    case Role::replica:
        return record.stage == Stage::refused ? 'x' : 'r';
    case Role::fenced:
        return 'f';
    case Role::forwarding:
        return 'w';
    case Role::owner_incomplete:
        return 'i';
    }
    return 'o';
}

ImageMarker marker_of(const Record& record) {
    return {record.uuid, record.generation, marker_role(record), record.marked};
}

// Its image is, or may be, set aside: nobody writes it here.
bool is_aside(const Record& record) {
    return record.role == Role::fenced || record.role == Role::forwarding ||
           (record.role == Role::replica && record.stage == Stage::refused);
}

// Written again from the first byte by whoever comes next, so it may be another file by now.
bool content_is_nobodys(const Record& record) {
    return record.role == Role::replica && record.stage != Stage::handed_over;
}

// The disk is elsewhere, for good, and nobody asks for this copy.
bool is_given_up(const Record& record) {
    return record.role == Role::fenced && record.stage == Stage::over;
}

UniqueFd lock_state_dir(const std::string& state_dir) {
    std::error_code error;
    std::filesystem::create_directories(std::filesystem::path(state_dir).parent_path(), error);
    if (error) {
        throw_errno(fmt::format("creating the folder of {}", state_dir), error.value());
    }
    if (::mkdir(state_dir.c_str(), 0700) != 0 && errno != EEXIST) {
        throw_errno(fmt::format("creating the state directory {}", state_dir));
    }
    const std::string path = state_dir + "/lock";
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) {
        throw_errno(path);
    }
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) {
            throw_errno(fmt::format("locking {}", path));
        }
        throw Error(ErrorKind::state,
                    fmt::format("another process serves this disk (it holds {}): stop that first "
                                "(drover serve --stop)",
                                path));
    }
    return fd;
}

} // namespace

Record accept(Step step) {
    if (const Refusal* const refusal = std::get_if<Refusal>(&step)) {
        throw Error(refusal->kind, refusal->text);
    }
    return std::get<Record>(std::move(step));
}

RecordStore RecordStore::open(const RecordStoreOptions& options) {
    RecordStore store(options);
    store.load();
    return store;
}

RecordStore::RecordStore(const RecordStoreOptions& options) : options_(options) {
    // The working directory may change later (nbdkit goes to /).
    options_.state_dir = absolute(options_.state_dir);
    lock_ = lock_state_dir(options_.state_dir);
    if (!options_.image.empty()) {
        options_.image = absolute(options_.image);
        const auto status = stat_of(options_.image);
        if (!status || S_ISREG(status->st_mode)) {
            image_ = options_.image;
        }
    }
    if (options_.machine_id.empty()) {
        options_.machine_id = machine_id_of_host();
    } else if (options_.machine_id == "-") {
        options_.machine_id.clear();
    }
}

std::string RecordStore::record_path() const {
    return record_path_in(options_.state_dir);
}

std::string RecordStore::room_path() const {
    return options_.state_dir + "/room";
}

void RecordStore::step(std::string_view what) const {
    if (options_.step) {
        options_.step(what);
    }
}

void RecordStore::load() {
    const auto bytes = read_whole_file(record_path());
    const Record stored = bytes ? parse_record(*bytes, record_path()) : Record();
    if (bytes) {
        // Whoever saved it may have died before its rename was durable, and from here on others are
        // told of it.
        sync_path(options_.state_dir, O_DIRECTORY);
    }
    record_ = stored;
    check_image(stored);
    if (!bytes) {
        if (!options_.destination) {
            save(first_record(random_uuid()));
        }
        return;
    }
    if (stored.role == Role::replica && !options_.destination) {
        throw Error(
            ErrorKind::state,
            fmt::format("{} is a replica (migration {}: {}), not the disk of a VM: finish that "
                        "with `drover recover`, or serve it with role=destination",
                        options_.image.empty() ? options_.state_dir : options_.image,
                        stored.migration,
                        to_string(stored.stage)));
    }
    if (!record_.fenced_image.empty() && !is_aside(record_)) {
        unfence_image();
    }
    const auto status = image_.empty() ? std::nullopt : stat_of(image_path());
    was_clean_ = status && record_.clean == clean_mark_of(*status);
    Record started = at_start(record_);
    // All that was applied was on disk when its process ended.
    started.consistent = started.consistent || (was_clean_ && record_.consistent);
    if (started != record_ || (record_.clean && !is_aside(record_))) {
        save(started);
    }
    if (status) {
        write_marker();
    }
}

// Throws unless record, marker and image belong together.
void RecordStore::check_image(const Record& stored) {
    const std::string record_file = record_path();
    const bool known = stored.version > 0;
    if (known && !stored.machine_id.empty() && !options_.machine_id.empty() &&
        stored.machine_id != options_.machine_id) {
        throw Error(ErrorKind::refused,
                    fmt::format("{} was written on another machine: the disk may be in use there. "
                                "docs/state-files.md says how to take it over",
                                record_file));
    }
    if (image_.empty()) {
        return;
    }
    if (!stored.fenced_image.empty() && stat_of(stored.fenced_image) && stat_of(image_)) {
        throw Error(ErrorKind::refused,
                    fmt::format("both {} and {} are there: the record is of the first; move the "
                                "second away",
                                stored.fenced_image,
                                image_));
    }
    const std::string file = image_path();
    const auto status = stat_of(file);
    if (!status) {
        if (options_.destination && (!known || content_is_nobodys(stored) || is_given_up(stored))) {
            record_.inode = 0;
            record_.fenced_image.clear();
            record_.fenced_mode = 0;
            return;
        }
        throw Error(ErrorKind::io, fmt::format("{}: no such file", file), ENOENT);
    }
    const auto marker = read_marker(file, image_);
    if (!known) {
        if (marker) {
            throw Error(ErrorKind::refused,
                        fmt::format("{} is marked as disk {} (generation {}, role {}), but {} is "
                                    "missing: give the state directory that belongs to it. "
                                    "docs/state-files.md says what to do if that is lost",
                                    file,
                                    marker->uuid,
                                    marker->generation,
                                    marker->role,
                                    record_file));
        }
        return;
    }
    if (marker && marker->uuid != stored.uuid) {
        throw Error(
            ErrorKind::refused,
            fmt::format("{} is marked as disk {}, {} is of disk {}: give the state directory "
                        "that belongs to the image",
                        file,
                        marker->uuid,
                        record_file,
                        stored.uuid));
    }
    if (marker && marker->version > stored.marked) {
        throw Error(
            ErrorKind::refused,
            fmt::format("{} is older than the marker of {} (version {}, the marker's is {}): "
                        "an old copy of the record was put back, and the disk may have moved "
                        "since. docs/state-files.md says what to do",
                        record_file,
                        file,
                        stored.marked,
                        marker->version));
    }
    if (stored.inode != 0 && status->st_ino != stored.inode) {
        if (!options_.destination || !content_is_nobodys(stored)) {
            throw Error(
                ErrorKind::refused,
                fmt::format("{} is another file than the one that {} was written for (inode "
                            "{}, not {}): a copy, or put back from a backup. "
                            "docs/state-files.md says what to do",
                            file,
                            record_file,
                            status->st_ino,
                            stored.inode));
        }
        record_.inode = 0;
    }
}

void RecordStore::save(const Record& record) {
    Record next = record;
    next.inode = record_.inode;
    next.fenced_image = record_.fenced_image;
    next.fenced_mode = record_.fenced_mode;
    next.clean = is_aside(next) ? record_.clean : std::nullopt;
    write(next);
    write_marker();
}

void RecordStore::write(Record next) {
    next.version = record_.version + 1;
    next.marked = record_.marked;
    next.machine_id = options_.machine_id;
    if (!image_.empty() && next.inode == 0) {
        if (const auto status = stat_of(image_path())) {
            next.inode = status->st_ino;
            next.marked = 0;
        }
    }
    ImageMarker before = marker_of(record_), after = marker_of(next);
    before.version = after.version = 0;
    if (next.marked == 0 || before != after) {
        next.marked = next.version;
    }
    const std::string bytes = serialize_record(next);
    try {
        write_file_durably(record_path(), bytes, 0600, options_.step);
    } catch (const Error& error) {
        const bool full = error.sys_errno() == ENOSPC || error.sys_errno() == EDQUOT;
        if (!full || ::unlink(room_path().c_str()) != 0) {
            throw;
        }
        write_file_durably(record_path(), bytes, 0600, options_.step);
    }
    keep_room();
    record_ = std::move(next);
    step("record saved");
}

// Where there is none now, the next write may do without.
void RecordStore::keep_room() const {
    const UniqueFd room(
        ::open(room_path().c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (room && ::posix_fallocate(room.get(), 0, room_bytes) != 0) {
        ::unlink(room_path().c_str());
    }
}

void RecordStore::write_marker() {
    marker_problem_.clear();
    // A blank destination that only refused has no UUID, and its image is not ours.
    if (image_.empty() || record_.inode == 0 || record_.uuid.empty()) {
        return;
    }
    try {
        const ImageMarker marker = marker_of(record_);
        if (read_marker(image_path(), image_) != marker) {
            drover::write_marker(image_path(), image_, marker);
        }
    } catch (const Error& error) {
        marker_problem_ = error.what();
    }
    step("marker written");
}

std::string RecordStore::image_path() const {
    const bool aside = !record_.fenced_image.empty() && stat_of(record_.fenced_image);
    return aside ? record_.fenced_image : options_.image;
}

void RecordStore::mark_clean() {
    if (image_.empty()) {
        return;
    }
    const std::string file = image_path();
    sync_path(file, 0);
    step("image synced");
    const auto status = stat_of(file);
    if (!status) {
        throw Error(ErrorKind::io, fmt::format("{}: no such file", file), ENOENT);
    }
    Record next = record_;
    next.clean = clean_mark_of(*status);
    write(next);
}

void RecordStore::set_aside() {
    if (!is_aside(record_)) {
        throw Error(
            ErrorKind::state,
            fmt::format("can't set the image aside: the disk is {}", to_string(record_.role)));
    }
    if (image_.empty()) {
        return;
    }
    if (record_.fenced_image.empty()) {
        const auto status = stat_of(image_);
        if (!status) {
            throw Error(ErrorKind::io, fmt::format("{}: no such file", image_), ENOENT);
        }
        Record next = record_;
        next.fenced_image = fmt::format("{}{}{}", image_, fenced_suffix, record_.generation);
        next.fenced_mode = status->st_mode & 07777;
        write(next);
    }
    const std::string file = image_path();
    if (::chmod(file.c_str(), record_.fenced_mode & ~write_bits) != 0) {
        throw_errno(fmt::format("taking away the write permission of {}", file));
    }
    step("image write-protected");
    if (file != record_.fenced_image) {
        rename_image(file, record_.fenced_image);
        step("image renamed");
    }
}

void RecordStore::fence_image() {
    set_aside();
    mark_clean();
}

void RecordStore::unfence_image() {
    if (record_.fenced_image.empty()) {
        return;
    }
    const std::string file = image_path();
    if (::chmod(file.c_str(), record_.fenced_mode) != 0) {
        throw_errno(fmt::format("giving back the write permission of {}", file));
    }
    step("image writable");
    if (file == record_.fenced_image) {
        // Its own path, unless a symbolic link led to it when it was set aside.
        rename_image(file, file.substr(0, file.rfind(fenced_suffix)));
        step("image renamed back");
    }
    Record next = record_;
    next.fenced_image.clear();
    next.fenced_mode = 0;
    write(next);
    write_marker();
}

std::string release_image(const std::string& state_dir) {
    const UniqueFd lock = lock_state_dir(state_dir);
    const auto record = peek_record(state_dir);
    if (!record || !is_given_up(*record) || record->fenced_image.empty()) {
        throw Error(
            ErrorKind::refused,
            fmt::format("{}: there is no image file that was given up for good", state_dir));
    }
    const std::string& file = record->fenced_image;
    if (::unlink(file.c_str()) != 0 && errno != ENOENT) {
        throw_errno(fmt::format("removing {}", file));
    }
    remove_marker(file.substr(0, file.rfind(fenced_suffix)));
    sync_path(std::filesystem::path(file).parent_path(), O_DIRECTORY);
    return file;
}

std::optional<Record> peek_record(const std::string& state_dir) {
    const std::string path = record_path_in(state_dir);
    const auto bytes = read_whole_file(path);
    return bytes ? std::optional(parse_record(*bytes, path)) : std::nullopt;
}

} // namespace drover
