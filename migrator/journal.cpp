// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/journal.h"

#include "common/secrets.h"
#include "common/test_steps.h"
#include "migrator/paths.h"

#include <ctime>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr off_t journal_room = 65536;

void write_whole(int fd, std::string_view text, const std::string& path) {
    while (!text.empty()) {
        const ssize_t written = ::write(fd, text.data(), text.size());
        if (written < 0 && errno != EINTR) {
            throw_errno(path);
        }
        text.remove_prefix(static_cast<size_t>(std::max<ssize_t>(written, 0)));
    }
}

UniqueFd open_to_append(const std::string& path) {
    UniqueFd file(::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
    if (!file) {
        throw_errno(path);
    }
    return file;
}

// For the steps to come, should the file system run full. Where there is no room now, or no such
// call, they may fail.
void keep_room(int journal) {
    static_cast<void>(::fallocate(journal, FALLOC_FL_KEEP_SIZE, 0, journal_room));
}

} // namespace

std::optional<JournalContent> read_journal(const std::string& path) {
    const auto bytes = read_whole_file(path);
    return bytes ? std::optional(parse_journal(*bytes, path)) : std::nullopt;
}

std::unique_ptr<Journal>
Journal::create(const std::string& path, std::string side, const Json& facts) {
    const auto before = read_journal(path);
    if (before && !before->over()) {
        throw Error(ErrorKind::state,
                    fmt::format("{}: a migration of this VM has not come to its end: `drover "
                                "recover` first",
                                path));
    }
    const std::string text = journal_line(journal_head(side, facts));
    write_file_durably(path, text, 0600);
    JournalContent content = parse_journal(text, path);
    UniqueFd file = open_to_append(path);
    keep_room(file.get());
    return std::unique_ptr<Journal>(
        new Journal(path, std::move(side), std::move(file), std::move(content)));
}

std::unique_ptr<Journal> Journal::go_on(const std::string& path) {
    const auto bytes = read_whole_file(path);
    if (!bytes) {
        throw Error(ErrorKind::state, fmt::format("{}: no such file", path), ENOENT);
    }
    JournalContent content = parse_journal(*bytes, path);
    UniqueFd file = open_to_append(path);
    // A new line may not begin behind the beginning of another one.
    const size_t whole = bytes->rfind('\n') + 1; // its first line is
    if (whole != bytes->size() && ::ftruncate(file.get(), static_cast<off_t>(whole)) != 0) {
        throw_errno(path);
    }
    keep_room(file.get());
    std::string side = content.text("side");
    return std::unique_ptr<Journal>(
        new Journal(path, std::move(side), std::move(file), std::move(content)));
}

void Journal::append(const Json& line) {
    if (failed_) {
        throw Error(ErrorKind::io, fmt::format("{} could not be written before", path_));
    }
    failed_ = true;
    write_whole(file_.get(), journal_line(line), path_);
    if (::fdatasync(file_.get()) != 0) {
        throw_errno(path_);
    }
    failed_ = false;
}

// On a thread: the event loop goes on while the disk works.
asio::awaitable<void> Journal::step(JournalStep step) {
    const std::string name(step_name(step));
    const Json line{{"step", name}, {"at", std::time(nullptr)}};
    std::function<void()> work = [this, line, name] {
        append(line);
        stop_for_test(side_ + "." + name);
    };
    co_await on_a_thread(std::move(work));
    content_.take(line, path_);
}

void Journal::note(const Json& facts) {
    append(facts);
    content_.take(facts, path_);
}

void Journal::end(const std::string& path) {
    const auto content = read_journal(path);
    if (content && !content->over()) {
        go_on(path)->note(Json{{"step", step_name(JournalStep::over)}});
    }
}

asio::awaitable<void> NoJournal::step(JournalStep) {
    co_return;
}

} // namespace drover
