// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as a journal, or ('l' before them) as a lock's note, ('d') a disk's, ('r') a report,
// ('v') the VM file of a VM that came in: refused with Error(refused), or what they say is the same
// when it is written again. 's' and 'n' put right checksums before each line of a journal, and
// before a lock's note, 'D' behind a disk's, so that what stands there is reached.
#include "common/secrets.h"
#include "migrator/state_files.h"
#include "test/fuzz/check.h"

using namespace drover;

namespace {

std::string with_checksum(std::string_view text) {
    return sha256_hex(text).substr(0, 32) + " " + std::string(text);
}

std::string seal_lines(std::string_view lines) {
    std::string sealed;
    while (!lines.empty()) {
        const size_t newline = lines.find('\n');
        sealed += with_checksum(lines.substr(0, newline)) + "\n";
        lines.remove_prefix(newline == std::string_view::npos ? lines.size() : newline + 1);
    }
    return sealed;
}

void check_journal(std::string_view bytes) {
    const JournalContent content = parse_journal(bytes, "FILE");
    FUZZ_CHECK(content.text("format") == "drover-journal");
    rpc::Json again = content.facts;
    if (content.last) {
        again["step"] = step_name(*content.last);
    }
    const JournalContent back = parse_journal(journal_line(again), "FILE");
    FUZZ_CHECK(back.facts == content.facts && back.last == content.last);
    // A line that a crash cut off counts as not written, wherever it was cut.
    const std::string cut = std::string(bytes.substr(0, bytes.rfind('\n') + 1)) + "0123 {\"step\"";
    const JournalContent before = parse_journal(cut, "FILE");
    FUZZ_CHECK(before.facts == content.facts && before.last == content.last);
}

void check_note(std::string_view bytes) {
    if (const auto holder = parse_lock_note(bytes, "FILE")) {
        FUZZ_CHECK(holder->pid >= 0);
        FUZZ_CHECK(parse_lock_note(lock_note(*holder), "FILE") == holder);
    }
}

void check_disk(const std::string& bytes) {
    const DiskNote note = parse_disk_note(bytes, "FILE");
    FUZZ_CHECK(note.pid >= 0);
    FUZZ_CHECK(parse_disk_note(disk_note(note), "FILE") == note);
}

void check_vm(const std::string& bytes) {
    check_arrived_vm_text(bytes, "FILE", "VM.D/VM.toml");
    FUZZ_CHECK(arrived_vm_text(bytes.substr(bytes.find('\n') + 1)) == bytes);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0]) {
        case 'l':
            check_note(bytes);
            break;
        case 'n':
            check_note("drover-lock 1 " + with_checksum(bytes) + "\n");
            break;
        case 'd':
            check_disk(bytes);
            break;
        case 'D':
            check_disk(bytes + "\n\"checksum\": \"" + sha256_hex(bytes + "\n") + "\"}\n");
            break;
        case 'r':
            check_kept_report(bytes, "FILE");
            break;
        case 'v':
            check_vm(bytes);
            break;
        case 's':
            check_journal(seal_lines(bytes));
            break;
        default:
            check_journal(bytes);
        }
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::refused);
    }
    return 0;
}
