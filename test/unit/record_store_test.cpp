// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/image_marker.h"
#include "nbd-proxy/record_store.h"
#include "test/unit/folder.h"

#include <filesystem>
#include <functional>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

using namespace drover;
namespace fs = std::filesystem;

namespace {

const std::string migration(32, 'a');
const std::string other_migration(32, 'b');
const std::string uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";

struct Crash {};

ErrorKind kind_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        return error.kind();
    }
    return ErrorKind::cancelled; // what none of these throws
}

// The source's way from the owner to the fence.
void fence_source(RecordStore& store) {
    store.save(accept(begin_attempt(store.record(), migration, 2)));
    store.save(accept(quiesce(store.record(), "q1", {"aa01", ""})));
    store.save(accept(handover_durable(store.record(), "q1", Lsn(7))));
    store.save(accept(fence(store.record(), {"q1", token_hash("bb01"), "", std::nullopt})));
}

} // namespace

TEST_CASE("record: what is written is what is read") {
    Record record = first_record(uuid);
    record.role = Role::forwarding;
    record.stage = Stage::fenced;
    record.migration = migration;
    record.generation = 0xffffffffffffffff;
    record.stream_counter = 3;
    record.quiesce = "q";
    record.token = "aa";
    record.token_hash = token_hash("aa");
    record.handover = Lsn(99);
    record.refusal_hash = token_hash("bb");
    record.forward = ForwardTarget{"host", 65535, "user", "/key", "nbd://x", "/sock"};
    record.refusal_token = "cc";
    record.largest_stream = {1, 2, 3};
    record.consistent = true;
    record.tombstones = {{other_migration, "dd"}};
    record.machine_id = "m";
    record.inode = 12;
    record.fenced_image = "/a \"b\"\n.fenced-2";
    record.fenced_mode = 0644;
    record.clean = CleanMark{1, 2, 3, -4, 5};
    record.version = 6;
    record.marked = 5;
    CHECK(parse_record(serialize_record(record), "record") == record);
    CHECK(parse_record(serialize_record(Record()), "record") == Record());
}

TEST_CASE("record: damaged, cut, foreign and newer ones are refused") {
    const std::string good = serialize_record(first_record(uuid));
    for (size_t length = 0; length < good.size(); ++length) {
        CHECK_THROWS_AS(parse_record(good.substr(0, length), "record"), Error);
    }
    for (size_t at = 0; at < good.size(); ++at) {
        std::string bad = good;
        bad[at] = char(bad[at] ^ 1);
        CHECK_THROWS_AS(parse_record(bad, "record"), Error);
    }
    CHECK_THROWS_WITH(parse_record("drover-record 2 whatever\n{}", "FILE"),
                      doctest::Contains("format 2"));
    CHECK_THROWS_WITH(parse_record("ELF", "FILE"), doctest::Contains("FILE: not a record"));

    // The checksum is right, the content is not ours.
    const auto sealed = [](const std::string& body) {
        return "drover-record 1 " + sha256_hex(body) + "\n" + body;
    };
    std::string body = good.substr(good.find('\n') + 1);
    CHECK(parse_record(sealed(body), "record") == first_record(uuid));
    CHECK_THROWS_AS(parse_record(sealed("[]"), "record"), Error);
    CHECK_THROWS_AS(parse_record(sealed("{\"more\": 1," + body.substr(1)), "record"), Error);
    const size_t role = body.find("\"owner\"");
    CHECK_THROWS_AS(parse_record(sealed(std::string(body).replace(role, 7, "\"boss\"")), "record"),
                    Error);
    CHECK_THROWS_AS(
        parse_record(sealed(std::string(body).replace(role, 7, "\"fenced\"")), "record"),
        Error); // idle and fenced
    CHECK_THROWS_AS(parse_record(sealed(std::string(body).replace(role, 7, "-1")), "record"),
                    Error);
}

TEST_CASE("record store: the first use makes an owner of its own and marks the image") {
    const Folder folder;
    std::string made;
    {
        const auto store = RecordStore::open(folder.options());
        made = store.record().uuid;
        CHECK(is_uuid(made));
        CHECK((store.record().role == Role::owner));
        CHECK(store.record().generation == 1);
        CHECK(store.marker_problem() == "");
    }
    const auto marker = read_marker(folder.file("vm.img"), folder.file("vm.img"));
    REQUIRE(marker);
    CHECK(marker->uuid == made);
    CHECK(marker->role == 'o');
    CHECK(RecordStore::open(folder.options()).record().uuid == made);

    struct stat status {};
    REQUIRE(::stat(folder.file("state/record").c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == 0600);
    REQUIRE(::stat(folder.file("state").c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == 0700);
}

TEST_CASE("record store: one process at a time") {
    const Folder folder;
    {
        const auto store = RecordStore::open(folder.options());
        CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::state));
        CHECK(peek_record(folder.file("state"))->uuid == store.record().uuid);
    }
    CHECK_NOTHROW(RecordStore::open(folder.options()));
    CHECK(!peek_record(folder.file("elsewhere")));
}

TEST_CASE("record store: what does not belong together is refused and left alone") {
    const Folder folder;
    { RecordStore::open(folder.options()); }
    const auto record = read_whole_file(folder.file("state/record"));
    RecordStoreOptions options = folder.options();

    std::string expected; // in the text
    SUBCASE("no record, the image is marked") {
        fs::remove(folder.file("state/record"));
        expected = "is missing";
    }
    SUBCASE("no record, the image is marked, as a destination") {
        fs::remove(folder.file("state/record"));
        options.destination = true;
        expected = "is missing";
    }
    SUBCASE("another disk's record") {
        fs::rename(folder.file("state"), folder.file("mine"));
        folder.make_image("other.img");
        RecordStoreOptions other = folder.options();
        other.image = folder.file("other.img");
        { RecordStore::open(other); }
        expected = "give the state directory that belongs to the image";
    }
    SUBCASE("an older record") {
        {
            auto store = RecordStore::open(options);
            fence_source(store);
        }
        write_file_durably(folder.file("state/record"), *record);
        expected = "an old copy of the record";
    }
    SUBCASE("the image is a copy without its mark") {
        fs::rename(folder.file("vm.img"), folder.file("old.img"));
        folder.make_image("vm.img");
        expected = "is another file";
    }
    SUBCASE("another machine") {
        options.machine_id = "machine-2";
        expected = "on another machine";
    }
    SUBCASE("a damaged record") {
        write_file_durably(folder.file("state/record"), record->substr(0, 100));
        expected = "damaged";
    }
    SUBCASE("a damaged marker") {
        REQUIRE(::setxattr(options.image.c_str(), "user.drover", "x", 1, 0) == 0);
        expected = "not a marker";
    }
    const auto before = read_whole_file(folder.file("state/record"));
    CHECK_THROWS_WITH_AS(RecordStore::open(options), doctest::Contains(expected.c_str()), Error);
    CHECK((kind_of([&] { RecordStore::open(options); }) == ErrorKind::refused));
    CHECK(read_whole_file(folder.file("state/record")) == before);
}

TEST_CASE("record store: a machine id that is not known on one side does not matter") {
    const Folder folder;
    RecordStoreOptions options = folder.options();
    { RecordStore::open(options); }
    options.machine_id = "-";
    CHECK_NOTHROW(RecordStore::open(options));
}

TEST_CASE("record store: a missing image is an error, for a destination it is not") {
    const Folder folder;
    fs::remove(folder.file("vm.img"));
    CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::io));
    auto store = RecordStore::open(folder.options(true));
    CHECK(store.record().uuid == "");
    CHECK(!fs::exists(folder.file("state/record")));

    folder.make_image("vm.img");
    store.save(accept(begin_replica(store.record(), {migration, 2, uuid, "cc01"})));
    CHECK(read_marker(folder.file("vm.img"), folder.file("vm.img"))->role == 'r');
    store.save(accept(refuse(store.record(), migration, "")));
    CHECK(read_marker(folder.file("vm.img"), folder.file("vm.img"))->role == 'x');
}

TEST_CASE("record store: what a refused migration left may be made anew, a handed over one not") {
    const Folder folder;
    bool handed_over = false;
    SUBCASE("refused") {}
    SUBCASE("handed over") {
        handed_over = true;
    }
    {
        auto store = RecordStore::open(folder.options(true));
        store.save(accept(begin_replica(store.record(), {migration, 2, uuid, "cc01"})));
        store.save(handed_over ? accept(receive_handover(
                                     store.record(), migration, 2, Lsn(1), token_hash("aa")))
                               : accept(refuse(store.record(), migration, "")));
    }
    CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::state));
    fs::rename(folder.file("vm.img"), folder.file("kept.img"));
    if (handed_over) {
        CHECK((kind_of([&] { RecordStore::open(folder.options(true)); }) == ErrorKind::io));
        folder.make_image("vm.img");
        CHECK((kind_of([&] { RecordStore::open(folder.options(true)); }) == ErrorKind::refused));
        return;
    }
    { CHECK((RecordStore::open(folder.options(true)).record().stage == Stage::refused)); }
    folder.make_image("vm.img");
    auto store = RecordStore::open(folder.options(true));
    CHECK(refusal_token_of(store.record(), migration) == "cc01");
    store.save(accept(begin_replica(store.record(), {other_migration, 3, uuid, "cc02"})));
    CHECK(read_marker(folder.file("vm.img"), folder.file("vm.img"))->generation == 3);
}

TEST_CASE("record store: a refused replica that is set aside stays so until it is prepared again") {
    const Folder folder;
    const std::string aside = folder.file("vm.img.fenced-2");
    {
        auto store = RecordStore::open(folder.options(true));
        store.save(accept(begin_replica(store.record(), {migration, 2, uuid, "cc01"})));
        CHECK(
            (kind_of([&] { store.set_aside(); }) == ErrorKind::state)); // not while it is received
        store.save(accept(refuse(store.record(), migration, "")));
        store.set_aside();
        CHECK(store.image_path() == aside);
    }
    CHECK_FALSE(fs::exists(folder.file("vm.img")));
    CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::state));
    auto store = RecordStore::open(folder.options(true));
    CHECK(store.image_path() == aside);
    CHECK(refusal_token_of(store.record(), migration) == "cc01");
    store.save(accept(begin_replica(store.record(), {other_migration, 3, uuid, "cc02"})));
    store.unfence_image();
    CHECK(fs::exists(folder.file("vm.img")));
    CHECK_FALSE(fs::exists(aside));
}

TEST_CASE("record store: a process that starts can't fence what another one quiesced") {
    const Folder folder;
    {
        auto store = RecordStore::open(folder.options());
        store.save(accept(begin_attempt(store.record(), migration, 2)));
        store.save(accept(quiesce(store.record(), "q1", {"aa01", ""})));
        store.save(accept(handover_durable(store.record(), "q1", Lsn(7))));
    }
    { CHECK((RecordStore::open(folder.options()).record().stage == Stage::voided)); }
    CHECK((peek_record(folder.file("state"))->stage == Stage::voided));
}

TEST_CASE("record store: the clean mark holds while nobody writes the image") {
    const Folder folder;
    {
        auto store = RecordStore::open(folder.options());
        CHECK(!store.was_clean());
        store.mark_clean();
        store.mark_clean();
    }
    {
        auto store = RecordStore::open(folder.options());
        CHECK(store.was_clean());
        CHECK(!store.record().clean); // it may be written from now on
    }
    CHECK(!RecordStore::open(folder.options()).was_clean()); // as after a crash
    { RecordStore::open(folder.options()).mark_clean(); }
    const UniqueFd fd(::open(folder.file("vm.img").c_str(), O_WRONLY));
    REQUIRE(::pwrite(fd.get(), "C", 1, 0) == 1);
    CHECK(!RecordStore::open(folder.options()).was_clean());
}

TEST_CASE("record store: a replica that has stopped cleanly is as consistent as it was") {
    const Folder folder;
    const RecordStoreOptions options = folder.options(true);
    {
        auto store = RecordStore::open(options);
        Record record = accept(begin_replica(store.record(), {migration, 2, uuid, "cc01"}));
        record.consistent = true;
        store.save(record);
        store.mark_clean();
    }
    {
        const auto store = RecordStore::open(options);
        CHECK(store.record().consistent);
        // Until a source comes back to it.
        CHECK_FALSE(at_first_session(store.record()).consistent);
    }
    auto store = RecordStore::open(options); // as after a crash
    CHECK_FALSE(store.record().consistent);
    // A handover is durable, and stays.
    store.save(accept(receive_handover(store.record(), migration, 2, Lsn(9), token_hash("aa01"))));
    CHECK(at_start(store.record()).consistent);
    CHECK(at_first_session(store.record()).consistent);
}

TEST_CASE("record store: a fenced image is set aside, read-only, and comes back as it was") {
    const Folder folder;
    const std::string aside = folder.file("vm.img.fenced-2");
    {
        auto store = RecordStore::open(folder.options());
        CHECK((kind_of([&] { store.fence_image(); }) == ErrorKind::state));
        fence_source(store);
        CHECK(store.image_path() == folder.file("vm.img"));
        store.fence_image();
        store.fence_image();
        CHECK(store.image_path() == aside);
        CHECK(!fs::exists(folder.file("vm.img")));
        CHECK((unsigned(fs::status(aside).permissions()) & 07777) == 0440);
        CHECK(store.record().clean);
    }
    {
        auto store = RecordStore::open(folder.options());
        CHECK(store.was_clean());
        CHECK((store.record().role == Role::fenced));
        CHECK(store.image_path() == aside);

        folder.make_image("vm.img");
        CHECK_THROWS_WITH_AS(store.unfence_image(), doctest::Contains("move it away"), Error);
    }
    CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::refused));
    fs::remove(folder.file("vm.img"));
    auto store = RecordStore::open(folder.options());
    store.save(accept(unfence(store.record(), "bb01")));
    store.unfence_image();
    CHECK(store.image_path() == folder.file("vm.img"));
    CHECK(!fs::exists(aside));
    CHECK((unsigned(fs::status(folder.file("vm.img")).permissions()) & 07777) == 0640);
    CHECK(!store.record().clean);
    CHECK(read_marker(folder.file("vm.img"), folder.file("vm.img"))->role == 'o');
}

TEST_CASE(
    "record store: the image of a disk that is elsewhere may be released, and the disk come back") {
    const Folder folder;
    auto options = folder.options();
    const auto release = [&] { return release_image(options.state_dir); };
    {
        auto store = RecordStore::open(options);
        CHECK((kind_of(release) == ErrorKind::state)); // it is served
        fence_source(store);
        store.fence_image();
    }
    CHECK((kind_of(release) == ErrorKind::refused)); // nobody knows yet whose it is
    {
        auto store = RecordStore::open(options);
        store.save(accept(finish(store.record(), store.record().migration)));
    }
    CHECK(release() == folder.file("vm.img.fenced-2"));
    CHECK(!fs::exists(folder.file("vm.img.fenced-2")));
    CHECK((kind_of([&] { RecordStore::open(options); }) == ErrorKind::io));
    options.destination = true;
    const auto store = RecordStore::open(options);
    CHECK(store.image_path() == folder.file("vm.img"));
    CHECK((store.record().role == Role::fenced));
}

TEST_CASE("record store: an image behind a symbolic link") {
    const Folder folder;
    fs::create_directory(folder.path / "disks");
    fs::rename(folder.file("vm.img"), folder.file("disks/real.img"));
    fs::create_symlink("disks/real.img", folder.file("vm.img"));
    {
        auto store = RecordStore::open(folder.options());
        fence_source(store);
        store.fence_image();
    }
    CHECK(fs::exists(folder.file("disks/real.img.fenced-2")));
    auto store = RecordStore::open(folder.options());
    CHECK(store.image_path() == folder.file("disks/real.img.fenced-2"));
    store.save(accept(unfence(store.record(), "bb01")));
    store.unfence_image();
    CHECK(fs::exists(folder.file("vm.img")));
}

TEST_CASE("record store: without an image file the record is all") {
    const Folder folder;
    RecordStoreOptions options = folder.options();
    options.image.clear();
    auto store = RecordStore::open(options);
    fence_source(store);
    store.fence_image();
    store.mark_clean();
    CHECK((store.record().role == Role::fenced));
    CHECK(store.record().fenced_image == "");
}

TEST_CASE("record store: the marker's file where there are no attributes") {
    const Folder folder;
    const std::string image = folder.file("vm.img");
    const std::string text = marker_text({uuid, 4, 'f', 17});
    write_file_durably(image + ".drover-mark", text + "\n");
    CHECK((read_marker(image, image) == ImageMarker{uuid, 4, 'f', 17}));
    CHECK((kind_of([&] { RecordStore::open(folder.options()); }) == ErrorKind::refused));
    // It stays where it is when the image is set aside.
    CHECK((read_marker(image, image + ".fenced-4") == ImageMarker{uuid, 4, 'f', 17}));
    for (const char* bad : {"", "drover-mark 3 x", "drover-mark 2 x 4 f 17", "drover-mark 2"}) {
        write_file_durably(image + ".drover-mark", bad);
        CHECK((kind_of([&] { read_marker(image, image); }) == ErrorKind::refused));
    }
    CHECK_THROWS_WITH(parse_marker("drover-mark 1 " + uuid + " 4 f 17", "FILE"),
                      doctest::Contains("an older drover"));
    for (size_t at = 0; at < text.size(); ++at) {
        std::string bad = text;
        bad[at] = char(bad[at] ^ 1);
        CHECK_THROWS_WITH(parse_marker(bad, "FILE"), doctest::Contains("FILE: "));
        CHECK_THROWS_AS(parse_marker(text.substr(0, at), "FILE"), Error);
    }
}

// The life of a disk: first use, fence, set aside, unfenced, back, fenced again; with a crash
// after the n-th step of it, for every n. Each start after a crash must find a state that it
// knows, and never one before what was already answered.
TEST_CASE("record store: a crash after any step leaves what the next start understands") {
    size_t crashes = 0;
    for (size_t crash_at = 1;; ++crash_at) {
        const Folder folder;
        size_t steps = 0;
        uint64_t answered_version = 0;
        Role answered_role = Role::owner;
        RecordStoreOptions options = folder.options();
        options.step = [&](std::string_view) {
            if (++steps == crash_at) {
                throw Crash();
            }
        };
        const auto answered = [&](const RecordStore& store) {
            answered_version = store.record().version;
            answered_role = store.record().role;
        };
        bool crashed = false;
        try {
            auto store = RecordStore::open(options);
            answered(store);
            fence_source(store);
            answered(store);
            store.fence_image();
            answered(store);
            store.save(accept(unfence(store.record(), "bb01")));
            answered(store);
            store.unfence_image();
            answered(store);
        } catch (const Crash&) {
            crashed = true;
        }
        {
            const auto store = RecordStore::open(folder.options());
            CHECK(store.record().version >= answered_version);
            const bool as_answered = store.record().role == answered_role;
            const bool next = answered_role == Role::owner ? store.record().role == Role::fenced
                                                           : store.record().role == Role::owner;
            CHECK((as_answered || next));
            CHECK(fs::exists(store.image_path()));
            CHECK((may_write(store.record()) ? store.image_path() == folder.file("vm.img")
                                             : store.record().role == Role::fenced));
            CHECK(*read_whole_file(store.image_path()) == "content");
        }
        // And it can go all the way from there.
        auto store = RecordStore::open(folder.options());
        if (store.record().role == Role::owner) {
            const uint64_t generation = store.record().generation + 1;
            store.save(accept(begin_attempt(store.record(), other_migration, generation)));
            store.save(accept(quiesce(store.record(), "q9", {"aa09", ""})));
            store.save(accept(handover_durable(store.record(), "q9", Lsn(7))));
            store.save(accept(fence(store.record(), {"q9", token_hash("bb01"), "", std::nullopt})));
        }
        store.fence_image();
        CHECK(fs::exists(store.record().fenced_image));
        CHECK(!fs::exists(folder.file("vm.img")));
        if (!crashed) {
            break;
        }
        ++crashes;
    }
    CHECK(crashes > 20);
}
