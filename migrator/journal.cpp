// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/journal.h"

#include "common/secrets.h"
#include "migrator/paths.h"

#include <cstdlib>
#include <ctime>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr std::string_view magic = "drover-journal";
constexpr uint64_t format = 1;
constexpr size_t checksum_digits = 32;

[[noreturn]] void refuse_file(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. It only helps to recover: move it away, "
                            "and then `drover recover VM HOST [--rsh CMD]` asks HOST, where the VM "
                            "was being moved to or from",
                            name,
                            why));
}

std::string line_of(const Json& json) {
    const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace);
    return sha256_hex(text).substr(0, checksum_digits) + " " + text + "\n";
}

std::optional<Json> json_of(std::string_view line) {
    if (line.size() <= checksum_digits || line[checksum_digits] != ' ') {
        return std::nullopt;
    }
    const std::string_view text = line.substr(checksum_digits + 1);
    if (sha256_hex(text).substr(0, checksum_digits) != line.substr(0, checksum_digits)) {
        return std::nullopt;
    }
    Json json = Json::parse(text, nullptr, false);
    return json.is_object() ? std::optional(std::move(json)) : std::nullopt;
}

std::optional<JournalStep> parse_step(const std::string& text) {
    for (int step = 0; step <= static_cast<int>(JournalStep::over); ++step) {
        if (step_name(static_cast<JournalStep>(step)) == text) {
            return static_cast<JournalStep>(step);
        }
    }
    return std::nullopt;
}

void check_head(const Json& head, const std::string& name) {
    if (head.value("format", Json()) != magic) {
        refuse_file(name, "not a journal of drover");
    }
    if (const Json version = head.value("version", Json()); version != format) {
        refuse_file(name,
                    fmt::format("of format {}, this drover knows format {}: use the drover that "
                                "wrote it",
                                version.dump(),
                                format));
    }
}

void take_line(JournalContent& content, const Json& line, const std::string& name) {
    for (const auto& [key, value] : line.items()) {
        if (key != "step") {
            content.facts[key] = value;
            continue;
        }
        const auto step = value.is_string() ? parse_step(value.get<std::string>()) : std::nullopt;
        if (!step) {
            refuse_file(name, fmt::format("damaged (an unknown step: {})", value.dump()));
        }
        content.last = step;
    }
}

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

// For tests (docs/control.md): $DROVER_TEST_STEPS is a folder with a FIFO for each step at which
// to stop. Writing into it says that the step is next; it is taken when NAME.go could be opened.
void stop_for_test(const std::string& name) {
    const char* const folder = std::getenv("DROVER_TEST_STEPS");
    if (folder == nullptr) {
        return;
    }
    const std::string path = fmt::format("{}/{}", folder, name);
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || !S_ISFIFO(info.st_mode)) {
        return;
    }
    // Found now: whoever hears that the step was reached may rename it, or remove it.
    const UniqueFd found(::open((path + ".go").c_str(), O_PATH | O_CLOEXEC));
    UniqueFd reached(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (reached) {
        write_whole(reached.get(), name + "\n", path);
        reached.reset();
    }
    const std::string go_path = fmt::format("/proc/self/fd/{}", found.get());
    const UniqueFd go(::open(go_path.c_str(), O_RDONLY | O_CLOEXEC));
}

} // namespace

std::string JournalContent::text(const char* key) const {
    const Json value = facts.value(key, Json());
    return value.is_string() ? value.get<std::string>() : std::string();
}

JournalContent parse_journal(std::string_view bytes, const std::string& name) {
    JournalContent content;
    bool first = true;
    while (!bytes.empty()) {
        const size_t newline = bytes.find('\n');
        if (newline == std::string_view::npos && !first) {
            return content; // a crash
        }
        const auto line = json_of(bytes.substr(0, newline));
        if (!line) {
            const bool foreign = first && bytes.find(magic) == std::string_view::npos;
            refuse_file(name,
                        foreign ? "not a journal of drover" : "damaged (a checksum is wrong)");
        }
        if (first) {
            check_head(*line, name);
        }
        take_line(content, *line, name);
        first = false;
        bytes.remove_prefix(newline == std::string_view::npos ? bytes.size() : newline + 1);
    }
    if (first) {
        refuse_file(name, "empty");
    }
    return content;
}

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
    Json head = facts;
    head["format"] = magic;
    head["version"] = format;
    head["side"] = side;
    head["began_at"] = std::time(nullptr);
    const std::string text = line_of(head);
    write_file_durably(path, text, 0600);
    JournalContent content = parse_journal(text, path);
    return std::unique_ptr<Journal>(
        new Journal(path, std::move(side), open_to_append(path), std::move(content)));
}

std::unique_ptr<Journal> Journal::go_on(const std::string& path) {
    const auto bytes = read_whole_file(path);
    if (!bytes) {
        throw Error(ErrorKind::state, fmt::format("{}: no such file", path), ENOENT);
    }
    JournalContent content = parse_journal(*bytes, path);
    UniqueFd file = open_to_append(path);
    // A new line may not begin behind the beginning of another one.
    const size_t whole = bytes->rfind('\n') == std::string::npos ? 0 : bytes->rfind('\n') + 1;
    if (whole != bytes->size() && ::ftruncate(file.get(), static_cast<off_t>(whole)) != 0) {
        throw_errno(path);
    }
    std::string side = content.text("side");
    return std::unique_ptr<Journal>(
        new Journal(path, std::move(side), std::move(file), std::move(content)));
}

void Journal::append(const Json& line) {
    if (failed_) {
        throw Error(ErrorKind::io, fmt::format("{} could not be written before", path_));
    }
    failed_ = true;
    write_whole(file_.get(), line_of(line), path_);
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
    take_line(content_, line, path_);
}

void Journal::note(const Json& facts) {
    append(facts);
    take_line(content_, facts, path_);
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
