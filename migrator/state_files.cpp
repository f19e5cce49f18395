// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/state_files.h"

#include "common/sealed_json.h"
#include "common/secrets.h"

#include <ctime>
#include <limits>

namespace drover {
namespace {

using rpc::Json;

constexpr std::string_view journal_magic = "drover-journal";
constexpr uint64_t journal_format = 1;
constexpr std::string_view lock_magic = "drover-lock ";
constexpr std::string_view lock_format = "1";
constexpr std::string_view disk_magic = "drover-disk";
constexpr std::string_view report_magic = "drover-report";
constexpr uint64_t object_format = 1; // of these two
constexpr std::string_view vm_magic = "# drover-vm ";
constexpr std::string_view vm_format = "1";

[[noreturn]] void refuse_journal(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. It only helps to recover: move it away, "
                            "and then `drover recover VM HOST [--rsh CMD]` asks HOST, where the VM "
                            "was being moved to or from",
                            name,
                            why));
}

[[noreturn]] void refuse_lock(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. Nothing is lost with it: move it away "
                            "while no migration or recovery of the VM runs",
                            name,
                            why));
}

[[noreturn]] void refuse_disk_note(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. It only says on which port a disk is "
                            "served: move it away; a disk that is being served must be stopped and "
                            "served again for its port to be known",
                            name,
                            why));
}

[[noreturn]] void refuse_report(const std::string& name, const std::string& why) {
    throw Error(
        ErrorKind::refused,
        fmt::format("{}: {}. Nothing was changed. Nothing depends on it: move it away", name, why));
}

std::string other_format(const std::string& found, std::string_view known) {
    return fmt::format(
        "of format {}, this drover knows format {}: use the drover that wrote it", found, known);
}

bool is_number(std::string_view text) {
    return !text.empty() && text.size() <= 6 &&
           text.find_first_not_of("0123456789") == std::string_view::npos;
}

// A JSON object whose last line, of all before it, is its checksum.
std::string checksum_line(std::string_view before) {
    return fmt::format("\"checksum\": \"{}\"}}\n", sha256_hex(before));
}

std::string with_checksum(Json object, std::string_view magic, int indent) {
    object["format"] = magic;
    object["version"] = object_format;
    std::string text = object.dump(indent, ' ', false, Json::error_handler_t::replace);
    text.erase(text.find_last_not_of('\n', text.size() - 2) + 1); // and its brace
    text += ",\n";
    return text + checksum_line(text);
}

using Refuse = void (*)(const std::string& name, const std::string& why);

Json parse_with_checksum(std::string_view bytes,
                         std::string_view magic,
                         const char* what,
                         const std::string& name,
                         Refuse refuse) {
    const std::string foreign = fmt::format("not {} of drover", what);
    const size_t end = bytes.size() < 2 ? 0 : bytes.rfind('\n', bytes.size() - 2) + 1;
    if (end == 0 || bytes.substr(end) != checksum_line(bytes.substr(0, end))) {
        const bool ours = bytes.find(magic) != std::string_view::npos;
        refuse(name, ours ? "damaged (the checksum is wrong)" : foreign);
    }
    Json object = Json::parse(bytes, nullptr, false);
    if (!object.is_object() || object.value("format", Json()) != magic) {
        refuse(name, foreign);
    }
    if (const Json version = object.value("version", Json()); version != object_format) {
        refuse(name,
               version.is_number() ? other_format(version.dump(), std::to_string(object_format))
                                   : foreign);
    }
    return object;
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
    if (head.value("format", Json()) != journal_magic) {
        refuse_journal(name, "not a journal of drover");
    }
    if (const Json version = head.value("version", Json()); version != journal_format) {
        refuse_journal(name, other_format(version.dump(), std::to_string(journal_format)));
    }
}

} // namespace

std::string_view step_name(JournalStep step) {
    switch (step) {
    case JournalStep::prepare:
        return "prepare";
    case JournalStep::replicate:
        return "replicate";
    case JournalStep::memory:
        return "memory";
    case JournalStep::handover:
        return "handover";
    case JournalStep::fence:
        return "fence";
    case JournalStep::promote:
        return "promote";
    case JournalStep::verify:
        return "verify";
    case JournalStep::finish:
        return "finish";
    case JournalStep::release:
        return "release";
    case JournalStep::cancel:
        return "cancel";
    case JournalStep::refuse:
        return "refuse";
    case JournalStep::unfence:
        return "unfence";
    case JournalStep::force:
        return "force";
    case JournalStep::resume:
        return "resume";
    case JournalStep::over:
        return "over";
    }
    return "?";
}

// --- the journal

std::string JournalContent::text(const char* key) const {
    const Json value = facts.value(key, Json());
    return value.is_string() ? value.get<std::string>() : std::string();
}

void JournalContent::take(const Json& line, const std::string& name) {
    for (const auto& [key, value] : line.items()) {
        if (key != "step") {
            facts[key] = value;
            continue;
        }
        const auto step = value.is_string() ? parse_step(value.get<std::string>()) : std::nullopt;
        if (!step) {
            refuse_journal(name, fmt::format("damaged (an unknown step: {})", value.dump()));
        }
        last = step;
    }
}

Json journal_head(const std::string& side, const Json& facts) {
    Json head = facts;
    head["format"] = journal_magic;
    head["version"] = journal_format;
    head["side"] = side;
    head["began_at"] = std::time(nullptr);
    return head;
}

std::string journal_line(const Json& json) {
    return sealed(json);
}

JournalContent parse_journal(std::string_view bytes, const std::string& name) {
    JournalContent content;
    if (bytes.empty()) {
        refuse_journal(name, "empty");
    }
    for (bool first = true; !bytes.empty(); first = false) {
        const size_t newline = bytes.find('\n');
        if (newline == std::string_view::npos && !first) {
            return content; // a crash; the first line was written whole
        }
        const auto line =
            newline != std::string_view::npos ? unsealed(bytes.substr(0, newline)) : std::nullopt;
        if (!line) {
            const bool foreign = first && bytes.find(journal_magic) == std::string_view::npos;
            refuse_journal(name,
                           foreign ? "not a journal of drover" : "damaged (a checksum is wrong)");
        }
        if (first) {
            check_head(*line, name);
        }
        content.take(*line, name);
        check_head(content.facts, name); // no later line says otherwise
        bytes.remove_prefix(newline + 1);
    }
    return content;
}

// --- locks

std::string lock_note(const LockHolder& holder) {
    const Json note{{"pid", holder.pid},
                    {"started", holder.started},
                    {"what", holder.what},
                    {"migration", holder.migration}};
    return fmt::format("{}{} {}", lock_magic, lock_format, sealed(note));
}

std::optional<LockHolder> parse_lock_note(std::string_view bytes, const std::string& name) {
    // Some file systems fill with zeroes what a power cut took.
    bytes = bytes.substr(0, bytes.find_last_not_of('\0') + 1);
    // Unfinished; or of a drover that wrote nothing but JSON.
    if (lock_magic.starts_with(bytes) || bytes.starts_with('{')) {
        return std::nullopt;
    }
    if (!bytes.starts_with(lock_magic)) {
        refuse_lock(name, "not a lock of drover");
    }
    bytes.remove_prefix(lock_magic.size());
    const std::string_view format = bytes.substr(0, bytes.find(' '));
    if (format != lock_format) {
        refuse_lock(name,
                    is_number(format) ? other_format(std::string(format), lock_format)
                                      : "not a lock of drover");
    }
    bytes.remove_prefix(std::min(bytes.size(), format.size() + 1));
    const auto note = unsealed(bytes.substr(0, bytes.find('\n')));
    if (!note) {
        return std::nullopt;
    }
    const Json pid = note->value("pid", Json()), started = note->value("started", Json()),
               what = note->value("what", Json()), migration = note->value("migration", Json());
    if (!pid.is_number_unsigned() ||
        pid.get<uint64_t>() > uint64_t(std::numeric_limits<pid_t>::max()) ||
        !started.is_number_unsigned() || !what.is_string() || !migration.is_string()) {
        return std::nullopt;
    }
    return LockHolder{pid.get<pid_t>(),
                      started.get<uint64_t>(),
                      what.get<std::string>(),
                      migration.get<std::string>()};
}

// --- the note of a disk that is served

std::string disk_note(const DiskNote& note) {
    return with_checksum(Json{{"pid", note.pid}, {"port", note.port}}, disk_magic, -1);
}

DiskNote parse_disk_note(std::string_view bytes, const std::string& name) {
    const Json note =
        parse_with_checksum(bytes, disk_magic, "the note of a disk", name, refuse_disk_note);
    const Json pid = note.value("pid", Json()), port = note.value("port", Json());
    if (!pid.is_number_unsigned() ||
        pid.get<uint64_t>() > uint64_t(std::numeric_limits<pid_t>::max()) ||
        !port.is_number_unsigned() || port.get<uint64_t>() > 65535) {
        refuse_disk_note(name, "damaged (a process and a port are expected)");
    }
    return {pid.get<pid_t>(), port.get<uint16_t>()};
}

// --- the report

std::string kept_report(Json report) {
    return with_checksum(std::move(report), report_magic, 2);
}

void check_kept_report(std::string_view bytes, const std::string& name) {
    parse_with_checksum(bytes, report_magic, "a report", name, refuse_report);
}

// --- the VM file of a VM that came in

std::string arrived_vm_text(const std::string& toml) {
    return fmt::format("{}{} {}\n{}", vm_magic, vm_format, sha256_hex(toml), toml);
}

void check_arrived_vm_text(std::string_view bytes,
                           const std::string& name,
                           const std::string& editable) {
    const auto refuse = [&](const std::string& why) {
        throw Error(ErrorKind::refused,
                    fmt::format("{}: {}. Nothing was changed. If what it says is right, move it to "
                                "{}, where it may be edited; else write that file, and move this "
                                "one away",
                                name,
                                why,
                                editable));
    };
    if (!bytes.starts_with(vm_magic)) {
        refuse("not a VM file that drover wrote (the line with its checksum is missing)");
    }
    bytes.remove_prefix(vm_magic.size());
    const std::string_view format = bytes.substr(0, bytes.find(' '));
    if (format != vm_format) {
        refuse(is_number(format) ? other_format(std::string(format), vm_format)
                                 : "damaged (its first line)");
    }
    const size_t newline = bytes.find('\n');
    if (newline == std::string_view::npos ||
        bytes.substr(format.size() + 1, newline - format.size() - 1) !=
            sha256_hex(bytes.substr(newline + 1))) {
        refuse("damaged, or edited (the checksum is wrong)");
    }
}

} // namespace drover
