// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/secrets.h"
#include "migrator/journal.h"
#include "migrator/report.h"
#include "migrator/run_lock.h"
#include "migrator/vm_file.h"
#include "test/unit/folder.h"

using namespace drover;
using rpc::Json;

namespace {

const std::string migration(32, 'a');

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

std::string step_line(JournalStep step) {
    return journal_line(Json{{"step", step_name(step)}, {"at", 5}});
}
std::string whole_journal() {
    return journal_line(journal_head("source", Json{{"migration", migration}, {"host", "b"}})) +
           step_line(JournalStep::prepare) + journal_line(Json{{"rsh_pid", 7}}) +
           step_line(JournalStep::fence);
}

std::string why_refused(const std::string& journal) {
    try {
        parse_journal(journal, "FILE");
    } catch (const Error& error) {
        CHECK((error.kind() == ErrorKind::refused));
        CHECK(has(error.what(), "FILE: "));
        CHECK(has(error.what(), "move it away"));
        return error.what();
    }
    return "";
}

// What a parser says of what is not to be used; "": it took it.
template <typename Parse>
std::string refusal(const Parse& parse, const std::string& bytes) {
    try {
        parse(bytes);
    } catch (const Error& error) {
        CHECK((error.kind() == ErrorKind::refused));
        CHECK(has(error.what(), "FILE: "));
        CHECK(has(error.what(), "move"));
        return error.what();
    }
    return "";
}

// Whole it is read; cut anywhere, with any bit wrong, or another program's it is not.
template <typename Parse>
void check_refusals(const Parse& parse, const std::string& whole) {
    CHECK(refusal(parse, whole) == "");
    for (size_t at = 0; at < whole.size(); ++at) {
        CHECK(refusal(parse, whole.substr(0, at)) != "");
        for (int bit = 0; bit < 8; ++bit) {
            std::string bad = whole;
            bad[at] = char(bad[at] ^ (1 << bit));
            CHECK(refusal(parse, bad) != "");
        }
    }
    CHECK(refusal(parse, whole + "\n") != "");
    for (const std::string& foreign : {std::string("\177ELF and so on\n"),
                                       std::string("{\"pid\": 7, \"port\": 8}\n"),
                                       std::string("\n\n"),
                                       std::string(100, '\0'),
                                       std::string(1 << 20, '[')}) {
        CHECK(has(refusal(parse, foreign), "FILE: not "));
    }
}

// Of another format or version, its checksum being right.
std::string object_of(std::string text, const std::string& from, const std::string& to) {
    text.replace(text.find(from), from.size(), to);
    text.erase(text.rfind('\n', text.size() - 2) + 1);
    return text + "\"checksum\": \"" + sha256_hex(text) + "\"}\n";
}

DiskNote read_note(const std::string& bytes) {
    return parse_disk_note(bytes, "FILE");
}
void read_report(const std::string& bytes) {
    check_kept_report(bytes, "FILE");
}
void read_vm(const std::string& bytes) {
    check_arrived_vm_text(bytes, "FILE", "VM.D/vm1.toml");
}

VmFile a_vm() {
    VmFile vm;
    vm.name = "vm1";
    vm.hypervisor = "none";
    vm.disks = {{"root", {"/images/vm1/root.img", ""}}};
    return vm;
}

} // namespace

TEST_CASE("journal: what was written is read, an unfinished last line is not") {
    const std::string whole = whole_journal();
    for (const char* const rest : {"", "0", "0123456789 {\"step\":\"over\"}"}) {
        const JournalContent content = parse_journal(whole + rest, "FILE");
        CHECK(content.text("migration") == migration);
        CHECK(content.text("side") == "source");
        CHECK((content.facts["rsh_pid"] == 7));
        CHECK((content.last == JournalStep::fence));
        CHECK(!content.over());
    }
    CHECK(parse_journal(whole + step_line(JournalStep::over), "FILE").over());
}

TEST_CASE("journal: damaged, foreign and newer ones are refused") {
    const std::string whole = whole_journal();
    const size_t last_line = whole.rfind('\n', whole.size() - 2) + 1;
    for (size_t at = 0; at < whole.size(); ++at) {
        std::string bad = whole;
        bad[at] = char(bad[at] ^ 1);
        // Without its newline the last line is one that a crash cut off.
        CHECK((why_refused(bad) == "") == (at == whole.size() - 1));
    }
    // Cut anywhere behind the first line it is an older one; that one is written whole.
    for (size_t length = 0; length < whole.size(); ++length) {
        const bool has_head = length > whole.find('\n');
        CHECK((why_refused(whole.substr(0, length)) == "") == has_head);
    }
    CHECK((parse_journal(whole.substr(0, last_line + 9), "FILE").last == JournalStep::prepare));
    CHECK(has(why_refused(""), "empty"));
    CHECK(has(why_refused("\177ELF and so on\n"), "not a journal"));
    CHECK(has(why_refused(journal_line(Json{{"format", "another"}, {"version", 1}})),
              "not a journal"));
    Json newer = journal_head("source", Json::object());
    newer["version"] = 2;
    newer["step"] = "dance";
    CHECK(has(why_refused(journal_line(newer)), "of format 2"));
    CHECK(has(why_refused(whole + journal_line(Json{{"step", "dance"}})), "unknown step"));
    CHECK(has(why_refused(whole + journal_line(Json{{"version", 2}})), "of format 2"));
}

TEST_CASE("journal: what can't be read is neither replaced nor gone on with") {
    const Folder folder;
    const std::string path = folder.file("journal");
    std::string damaged = whole_journal();
    damaged[50] ^= 1;
    // The last one: the first line is there, but for its newline.
    const std::string line = journal_line(journal_head("source", Json::object()));
    for (const std::string& content :
         {damaged, std::string("no journal\n"), std::string(), line.substr(0, line.size() - 1)}) {
        write_file_durably(path, content);
        CHECK_THROWS_WITH(Journal::create(path, "source", Json::object()),
                          doctest::Contains(path.c_str()));
        CHECK_THROWS_AS(Journal::go_on(path), Error);
        CHECK_THROWS_AS(Journal::end(path), Error);
        CHECK((read_whole_file(path) == content));
    }
}

TEST_CASE("run lock: its note goes there and back") {
    const LockHolder holder{77, 123456789, "agent", migration};
    CHECK((parse_lock_note(lock_note(holder), "FILE") == holder));
    CHECK(!parse_lock_note("", "FILE"));
    CHECK(!parse_lock_note(std::string(200, '\0'), "FILE"));
    // One that a crash has left unfinished names nobody.
    const std::string note = lock_note(holder);
    const size_t begin = std::string("drover-lock 1 ").size();
    for (size_t length = 0; length + 1 < note.size(); ++length) {
        CHECK(!parse_lock_note(note.substr(0, length), "FILE"));
        CHECK(!parse_lock_note(note.substr(0, length) + std::string(9, '\0'), "FILE"));
    }
    CHECK(!parse_lock_note("{\"pid\": 77, \"started\": 1}", "FILE")); // before there was a format
    for (size_t at = begin; at + 1 < note.size(); ++at) {
        std::string bad = note;
        bad[at] = char(bad[at] ^ 1);
        CHECK(!parse_lock_note(bad, "FILE"));
    }
}

TEST_CASE("run lock: another program's file, or a newer drover's, is refused and left as it is") {
    const Folder folder;
    const std::string path = folder.file("migrate.lock");
    for (const char* const content :
         {"precious", "drovers", "drover-lock 2 whatever", "drover-lock x", "drover-locks"}) {
        write_file_durably(path, content);
        RunLock lock(path);
        CHECK_THROWS_WITH(lock.try_lock("migrate"), doctest::Contains(path.c_str()));
        CHECK_THROWS_WITH(lock.holder(), doctest::Contains("move it away"));
        CHECK((read_whole_file(path) == content));
    }
    write_file_durably(path, "");
    RunLock lock(path), other(path);
    CHECK(lock.try_lock("migrate"));
    CHECK_FALSE(other.try_lock("recover"));
    REQUIRE(other.holder());
    CHECK(other.holder()->what == "migrate");
    CHECK(other.is_held());
}

TEST_CASE("disk note: what was written is read; damaged, foreign and newer ones are refused") {
    const std::string whole = disk_note({4711, 10809});
    CHECK((read_note(whole) == DiskNote{4711, 10809}));
    CHECK((Json::parse(whole)["pid"] == 4711)); // for jq
    check_refusals(read_note, whole);
    CHECK(has(refusal(read_note, object_of(whole, "\"version\":1", "\"version\":2")),
              "of format 2, this drover knows format 1"));
    CHECK(has(refusal(read_note, object_of(whole, "drover-disk", "drover-disc")), "not the note"));
    CHECK(has(refusal(read_note, kept_report(Json::object())), "not the note"));
    for (const char* const port : {"65536", "-1", "\"10809\"", "1.5", "null"}) {
        CHECK(has(refusal(read_note, object_of(whole, "10809", port)), "damaged"));
    }
    CHECK(has(refusal(read_note, object_of(whole, "4711", "99999999999")), "damaged"));
}

TEST_CASE("report: damaged, foreign and newer ones are refused, and left as they are") {
    const Json report{{"vm", "vm1"}, {"disks", {{{"name", "root"}}}}, {"error", "not UTF-8: \xff"}};
    const std::string whole = kept_report(report);
    CHECK((Json::parse(whole)["disks"] == report["disks"]));
    check_refusals(read_report, whole);
    CHECK(has(refusal(read_report, object_of(whole, "\"version\": 1", "\"version\": 2")),
              "of format 2"));
    const Folder folder;
    const std::string path = folder.file("last-migration.json");
    keep_report(path, report);
    keep_report(path, Json{{"vm", "vm2"}});
    CHECK((Json::parse(read_whole_file(path).value())["vm"] == "vm2"));
    for (const std::string& content : {whole.substr(0, 40), std::string("{}"), std::string()}) {
        write_file_durably(path, content);
        CHECK_THROWS_WITH(keep_report(path, report), doctest::Contains(path.c_str()));
        CHECK((read_whole_file(path) == content));
    }
}

TEST_CASE("VM file that came in: damaged, edited, foreign and newer ones are refused and stay") {
    const std::string toml = to_toml(a_vm());
    const std::string whole = arrived_vm_text(toml);
    check_refusals(read_vm, whole);
    CHECK(has(refusal(read_vm, whole + "[hooks]\n"), "edited"));
    CHECK(has(refusal(read_vm, whole + "[hooks]\n"), "move it to VM.D/vm1.toml"));
    CHECK(has(refusal(read_vm, toml), "not a VM file that drover wrote"));
    CHECK(has(refusal(read_vm, "# drover-vm 2 whatever"), "of format 2"));
    // What is in front is a comment.
    const VmFile back = parse_vm_file(SiteConfig{}, whole, "FILE", HostCheck::may_be_missing);
    CHECK((to_toml(back) == toml));
    const Folder folder;
    const std::string path = folder.file("vm.toml");
    keep_arrived_vm_file(path, a_vm());
    keep_arrived_vm_file(path, a_vm());
    CHECK((read_whole_file(path) == whole));
    for (const std::string& content : {whole + "\n", toml, std::string(), std::string("x")}) {
        write_file_durably(path, content);
        CHECK_THROWS_WITH(keep_arrived_vm_file(path, a_vm()), doctest::Contains(path.c_str()));
        CHECK((read_whole_file(path) == content));
    }
}
