// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/engine.h"
#include "test/unit/folder.h"
#include "test/unit/nbd_server.h"

#include <array>
#include <fstream>
#include <future>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

const std::string migration(32, 'a');
const std::string refusal_token = "bb01";
const std::string uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";

// As a source leaves its record that was fenced to forward, to an owner that nobody can reach.
void leave_forwarding(const Folder& folder) {
    RecordStore store =
        RecordStore::open({.image = folder.file("vm.img"), .state_dir = folder.file("state")});
    store.save(accept(begin_attempt(store.record(), migration, 2)));
    store.save(accept(quiesce(store.record(), "q1", {"aa01", ""})));
    store.save(accept(handover_durable(store.record(), "q1", Lsn(7))));
    const ForwardTarget nowhere{.socket = folder.file("nobody.sock")};
    store.save(accept(fence(store.record(), {"q1", token_hash(refusal_token), "", nowhere})));
}

} // namespace

TEST_CASE("engine: a shutdown that cannot flush leaves the clients as they were") {
    Server server;
    const std::string bad = server.path("bad");
    server.nbdkit({"eval",
                   "get_size=echo 1M",
                   "pread=head -c $3 /dev/zero",
                   "pwrite=cat >/dev/null",
                   "flush=if [ -e " + bad + " ]; then echo EIO >&2; exit 1; fi"});
    Engine engine({.uri = server.uri()});
    engine.start();
    const auto client = engine.open("", false, false, false);
    std::ofstream(bad).close();
    CHECK_THROWS_AS(engine.call("shutdown", rpc::Json::object()), Error);
    auto write = std::async(std::launch::async, [&] { client->write("here", {0, 4}, false); });
    REQUIRE(write.wait_for(10s) == std::future_status::ready);
    write.get();
}

TEST_CASE("engine: a migration that a dead process had begun is tried until its peer answers") {
    const Folder folder;
    {
        RecordStore store =
            RecordStore::open({.image = folder.file("vm.img"), .state_dir = folder.file("state")});
        store.save(accept(begin_attempt(store.record(), migration, 2)));
    }
    Engine engine({.file = folder.file("vm.img"), .state_dir = folder.file("state")});
    engine.start();
    const auto replicate = [&](uint64_t generation) {
        engine.call("replicate",
                    {{"migration", migration},
                     {"generation", generation},
                     {"to", {{"socket", folder.file("nobody.sock")}}}});
    };
    const auto kind_of = [&](uint64_t generation) {
        try {
            replicate(generation);
        } catch (const Error& error) {
            return error.kind();
        }
        return ErrorKind::state;
    };
    CHECK(kind_of(2) == ErrorKind::peer);
    CHECK(kind_of(2) == ErrorKind::peer);
    CHECK(kind_of(3) == ErrorKind::refused);
}

TEST_CASE("engine: a source that forwards to nobody, after a restart, can be unfenced") {
    const Folder folder;
    leave_forwarding(folder);
    Engine engine({.file = folder.file("vm.img"), .state_dir = folder.file("state")});
    engine.start();
    const auto client = engine.open("", false, false, false);
    auto write = std::async(std::launch::async, [&] { client->write("here", {0, 4}, true); });
    CHECK(write.wait_for(100ms) == std::future_status::timeout);
    engine.call("unfence", {{"refusal_token", refusal_token}});
    write.get();
    char read[4];
    client->read(read, {0, 4});
    CHECK(std::string_view(read, 4) == "here");
    CHECK(engine.status()["role"] == "owner");
    // Who still dials the other owner gives up: nothing of it comes into the record any more.
    const uint64_t version = peek_record(folder.file("state")).value().version;
    std::this_thread::sleep_for(200ms);
    CHECK(peek_record(folder.file("state")).value().version == version);
}

TEST_CASE("engine: the migration's exports are gone with the promotion") {
    const Folder folder;
    folder.make_image("vm.img", std::string(64 * KiB, 'x'));
    const std::string state = folder.file("state");
    {
        RecordStore store = RecordStore::open(
            {.image = folder.file("vm.img"), .state_dir = state, .destination = true});
        store.save(accept(begin_replica(store.record(), {migration, 2, uuid, refusal_token})));
        store.save(
            accept(receive_handover(store.record(), migration, 2, Lsn(7), token_hash("aa01"))));
    }
    Engine engine({.file = folder.file("vm.img"), .state_dir = state, .destination = true});
    engine.start();
    engine.open("state", true, true, true);
    engine.open("replica", false, true, true);
    engine.call("promote", {{"migration", migration}, {"token", "aa01"}});
    CHECK_THROWS_AS(engine.open("state", true, true, true), Error);
    CHECK_THROWS_AS(engine.open("replica", false, true, true), Error);
    engine.open("hashes", true, true, true);
}

TEST_CASE("engine: hashes of the wrong length, none, or wrong ones verify nothing") {
    const Folder folder;
    folder.make_image("vm.img", std::string(2 * 64 * KiB + 512, 'x'));
    Engine engine({.file = folder.file("vm.img"), .state_dir = folder.file("state")});
    engine.start();
    const auto verify = [&](const std::string& size, const std::string& pread) {
        Server server;
        server.nbdkit({"eval", "get_size=echo " + size, "pread=" + pread});
        return engine.call("verify", {{"to", {{"socket", server.socket()}}}});
    };
    const std::string zeroes = "head -c $3 /dev/zero";
    for (const char* const size : {"0", "16", "47", "49", "64", "9223372036854775807"}) {
        CHECK_THROWS_WITH(verify(size, zeroes), doctest::Contains("another size"));
    }
    CHECK_THROWS_AS(verify("48", "echo EIO >&2; exit 1"), Error);
    const rpc::Json different = verify("48", zeroes);
    CHECK((different["blocks"] == 3));
    CHECK((different["different"] == 3));
    CHECK((different["first_different"] == 0));
    // Those of the disk itself, as the other side would have them.
    std::array<char, 48> hashes{};
    engine.open("hashes", true, false, false)->read(hashes.data(), {0, hashes.size()});
    std::ofstream(folder.file("hashes"), std::ios::binary).write(hashes.data(), hashes.size());
    CHECK((verify("48", "head -c $3 " + folder.file("hashes"))["different"] == 0));
}
