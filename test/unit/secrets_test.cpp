// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/secrets.h"

#include <filesystem>
#include <set>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <sys/stat.h>

using namespace drover;
namespace fs = std::filesystem;

namespace {

class Folder {
public:
    Folder() {
        std::string name = fs::temp_directory_path() / "drover-secrets-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path_ = name;
    }
    ~Folder() { fs::remove_all(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    std::string file(const std::string& name) const { return path_ / name; }

private:
    fs::path path_;
};

mode_t mode_of(const std::string& path) {
    struct stat status {};
    REQUIRE(::stat(path.c_str(), &status) == 0);
    return status.st_mode & 07777;
}

} // namespace

TEST_CASE("hexadecimal goes there and back") {
    std::string all;
    for (int byte = 0; byte < 256; ++byte) {
        all.push_back(char(byte));
    }
    CHECK(from_hex(to_hex(all)) == all);
    CHECK(to_hex("\x01\xfe") == "01fe");
    CHECK(from_hex("01FE") == std::string("\x01\xfe"));
    CHECK(from_hex("") == "");
    for (const char* bad : {"0", "0g", "g0", " 0", "0x", "00 "}) {
        CHECK(!from_hex(bad));
    }
}

TEST_CASE("SHA-256: the examples of FIPS 180-2") {
    CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_hex(std::string(1'000'000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("the hash of a token is that of its bytes") {
    CHECK(token_hash("616263") == sha256_hex("abc"));
    CHECK(token_hash("616263") == token_hash("616263"));
    CHECK(token_hash("") == "");
    CHECK(token_hash("61626") == "");
    CHECK(token_hash("no") == "");
}

TEST_CASE("secrets are equal or not") {
    CHECK(equal_secret("abc", "abc"));
    CHECK(equal_secret("", ""));
    CHECK(!equal_secret("abc", "abd"));
    CHECK(!equal_secret("abc", "ab"));
    CHECK(!equal_secret("", "a"));
}

TEST_CASE("random values differ and look as they should") {
    CHECK(random_bytes(0) == "");
    CHECK(random_hex(16).size() == 32);
    std::set<std::string> seen;
    for (int i = 0; i < 1000; ++i) {
        const std::string uuid = random_uuid();
        CHECK(is_uuid(uuid));
        CHECK(uuid[14] == '4');
        seen.insert(uuid);
    }
    CHECK(seen.size() == 1000);
    // More than getrandom gives in one piece.
    CHECK(random_bytes(1 << 20).size() == 1 << 20);
}

TEST_CASE("what is a UUID") {
    CHECK(is_uuid("0f8fad5b-d9cb-469f-a165-70867728950e"));
    CHECK(!is_uuid("0F8FAD5B-D9CB-469F-A165-70867728950E"));
    CHECK(!is_uuid("0f8fad5bd9cb469fa16570867728950e"));
    CHECK(!is_uuid("0f8fad5b-d9cb-469f-a165-70867728950"));
    CHECK(!is_uuid("0f8fad5b-d9cb-469f-a165-70867728950-"));
    CHECK(!is_uuid(""));
}

TEST_CASE("a file is replaced whole, with its mode") {
    const Folder folder;
    const std::string path = folder.file("secret");
    CHECK(!read_whole_file(path));
    write_file_durably(path, "one");
    CHECK(read_whole_file(path) == "one");
    CHECK(mode_of(path) == 0600);
    write_file_durably(path, std::string(100'000, 'x'), 0640);
    CHECK(read_whole_file(path)->size() == 100'000);
    CHECK(mode_of(path) == 0640);
    CHECK_THROWS_AS(read_whole_file(path, 99'999), Error);
    CHECK_THROWS_AS(write_file_durably(folder.file("no/such/folder"), "x"), Error);
}

TEST_CASE("a crash on the way leaves the old content or the new one") {
    struct Crash {};
    for (int crash_at = 1; crash_at <= 3; ++crash_at) {
        const Folder folder;
        const std::string path = folder.file("secret");
        write_file_durably(path, "old");
        int steps = 0;
        CHECK_THROWS_AS(write_file_durably(path,
                                           "new",
                                           0600,
                                           [&](std::string_view) {
                                               if (++steps == crash_at) {
                                                   throw Crash();
                                               }
                                           }),
                        Crash);
        CHECK(*read_whole_file(path) == (crash_at == 1 ? "old" : "new"));
        write_file_durably(path, "later");
        CHECK(read_whole_file(path) == "later");
    }
}

TEST_CASE("a write that fails keeps the old content and leaves nothing beside it") {
    const Folder folder;
    const std::string path = folder.file("folder");
    fs::create_directory(path); // can't be replaced by a file
    CHECK_THROWS_AS(write_file_durably(path, "new"), Error);
    CHECK(fs::is_directory(path));
    CHECK(!fs::exists(path + ".tmp"));
}

TEST_CASE("keys come and go in the key file, others stay") {
    const Folder folder;
    const std::string path = folder.file("psk");
    remove_psk(path, "nobody");
    CHECK(!fs::exists(path));
    add_psk(path, "a", "0011");
    add_psk(path, "ab", "2233");
    CHECK(read_whole_file(path) == "a:0011\nab:2233\n");
    CHECK(mode_of(path) == 0600);
    add_psk(path, "a", "4455");
    CHECK(read_whole_file(path) == "ab:2233\na:4455\n");
    remove_psk(path, "ab");
    remove_psk(path, "ab");
    CHECK(read_whole_file(path) == "a:4455\n");
    add_psk(path, "verify-1", "00");
    add_psk(path, "verify-2", "00");
    add_psk(path, "verify", "00");
    remove_psks(path, "verify-");
    remove_psk(path, "verify");
    CHECK(read_whole_file(path) == "a:4455\n");
    remove_psk(path, "a");
    CHECK(read_whole_file(path) == "");
}

TEST_CASE("what can't stand in a key file is refused") {
    const Folder folder;
    const std::string path = folder.file("psk");
    for (const char* user : {"", "a:b", "a\nb", "#61", "a b", "ä"}) {
        CHECK_THROWS_AS(add_psk(path, user, "00"), Error);
    }
    for (const char* key : {"", "0", "xy", "00\n"}) {
        CHECK_THROWS_AS(add_psk(path, "user", key), Error);
    }
    CHECK(!fs::exists(path));
}

TEST_CASE("two that change the key file at once do not lose each other's keys") {
    const Folder folder;
    const std::string path = folder.file("psk");
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
            for (int i = 0; i < 10; ++i) {
                add_psk(path, "user" + std::to_string(10 * thread + i), "00");
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    const std::string content = *read_whole_file(path);
    CHECK(std::count(content.begin(), content.end(), '\n') == 40);
}

TEST_CASE("a file that is no key file is not written over") {
    const Folder folder;
    const std::string path = folder.file("psk");
    for (const char* const content : {"a:0011\nnothing\n", "a:\n", ":00\n", "a:0g\n", "\177ELF", "\n"}) {
        write_file_durably(path, content);
        for (const char* const user : {"a", "b"}) {
            CHECK_THROWS_WITH(add_psk(path, user, "00"), doctest::Contains(path.c_str()));
            CHECK_THROWS_AS(remove_psk(path, user), Error);
        }
        CHECK((read_whole_file(path) == content));
    }
}
