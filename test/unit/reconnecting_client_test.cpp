// SPDX-License-Identifier: GPL-2.0-or-later
// Against real servers that are killed and started again. nbdkit's memory forgets everything then.
#include "common/error.h"
#include "nbd-proxy/backend.h"
#include "nbd-proxy/reconnecting_client.h"
#include "test/unit/nbd_server.h"

#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

const std::vector<std::string> memory{"memory", "1M"};

std::unique_ptr<Backend> open_disk(const Server& server, std::chrono::milliseconds patience = 60s) {
    return open_nbd_backend(server.uri(), false, patience);
}

void write(Backend& disk, uint64_t offset, const std::string& text, bool fua = false) {
    disk.write(text.data(), {offset, text.size()}, fua);
}

std::string read(Backend& disk, uint64_t offset, uint64_t length) {
    std::string text(length, '?');
    disk.read(text.data(), {offset, length});
    return text;
}

std::optional<Error> error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

// A disk of zeroes that does what scripts say. No dd: it asks for memory in a way that
// AddressSanitizer refuses.
std::vector<std::string> scripted(const std::string& pwrite, const std::string& flush) {
    return {"eval",
            "get_size=echo 1M",
            "pread=head -c $3 /dev/zero",
            "pwrite=" + pwrite,
            "flush=" + flush};
}

} // namespace

TEST_CASE("reconnecting: what was not flushed is done again, in order; what was is not") {
    Server server;
    server.nbdkit(memory);
    const auto disk = open_disk(server);
    write(*disk, 0, "flushed");
    disk->flush();
    write(*disk, 4096, "first");
    write(*disk, 4096, "second");
    write(*disk, 8192, "zeroed");
    disk->zero({8192, 3}, true, false, false);
    server.stop(SIGKILL);
    server.nbdkit(memory);
    CHECK(read(*disk, 4096, 6) == "second");
    CHECK(read(*disk, 8192, 6) == std::string(3, '\0') + "oed");
    CHECK(read(*disk, 0, 7) == std::string(7, '\0')); // that server forgets what it promised
    disk->flush();
    server.stop(SIGKILL);
    server.nbdkit(memory);
    CHECK(read(*disk, 4096, 6) == std::string(6, '\0'));
}

TEST_CASE("reconnecting: older writes are not done again over a durable one") {
    Server server;
    const std::string file = server.path("disk");
    std::ofstream(file).close();
    std::filesystem::resize_file(file, 1 * MiB);
    server.nbdkit({"file", file});
    const auto disk = open_disk(server);
    write(*disk, 0, "older");
    write(*disk, 0, "newer", true);
    server.stop(SIGKILL);
    server.nbdkit({"file", file});
    CHECK(read(*disk, 0, 5) == "newer");
}

TEST_CASE("reconnecting: what waited for the server is not done once its client has gone") {
    Server server;
    const std::string file = server.path("disk");
    std::ofstream(file).close();
    std::filesystem::resize_file(file, 1 * MiB);
    server.nbdkit({"file", file});
    std::atomic<bool> gone{false};
    const auto disk = open_nbd_backend(server.uri(), false, 60s, [&] { return gone.load(); });
    write(*disk, 0, "alive");
    server.stop(SIGKILL);
    auto waits =
        std::async(std::launch::async, [&] { return error_of([&] { write(*disk, 0, "dead"); }); });
    std::this_thread::sleep_for(100ms); // it has found out that the server is gone
    gone = true;
    server.nbdkit({"file", file});
    const auto error = waits.get();
    REQUIRE(error);
    CHECK(error->sys_errno() == ESHUTDOWN);
    gone = false;
    CHECK(read(*disk, 0, 5) == "alive");
}

TEST_CASE("reconnecting: requests wait for the server, for as long as they may") {
    Server server;
    server.nbdkit(memory);
    const auto patient = open_disk(server);
    const auto impatient = open_disk(server, 300ms);
    write(*impatient, 4096, "kept");
    server.stop(SIGKILL);
    auto waits = std::async(std::launch::async, [&] { write(*patient, 0, "here"); });
    const auto error = error_of([&] { read(*impatient, 0, 1); });
    REQUIRE(error);
    CHECK(error->kind() == ErrorKind::peer);
    CHECK(error->sys_errno() == EIO);
    CHECK(std::string(error->what()).find("has not been reachable") != std::string::npos);
    CHECK(error_of([&] { impatient->flush(); }));
    CHECK(waits.wait_for(0s) == std::future_status::timeout);

    server.nbdkit(memory);
    waits.get();
    CHECK(read(*patient, 0, 4) == "here");
    // The other one is back as well, with what it had answered.
    const auto end = std::chrono::steady_clock::now() + 20s;
    while (error_of([&] { read(*impatient, 0, 1); }) && std::chrono::steady_clock::now() < end) {
        std::this_thread::sleep_for(10ms);
    }
    CHECK(read(*impatient, 4096, 4) == "kept");
    impatient->flush();
}

TEST_CASE("reconnecting: after a flush that failed there is no other that does not") {
    Server server;
    const std::string bad = server.path("bad");
    const auto disk_with =
        scripted("cat >/dev/null", "if [ -e " + bad + " ]; then echo EIO >&2; exit 1; fi");
    server.nbdkit(disk_with);
    const auto disk = open_disk(server);
    write(*disk, 0, "x");
    disk->flush();
    std::ofstream(bad).close();
    CHECK(error_of([&] { disk->flush(); }));
    std::filesystem::remove(bad);
    CHECK(error_of([&] { disk->flush(); }));
    server.stop(SIGKILL);
    server.nbdkit(disk_with);
    CHECK(error_of([&] { disk->flush(); }));
    write(*disk, 0, "x"); // the rest goes on
    CHECK(read(*disk, 0, 1) == std::string(1, '\0'));
}

TEST_CASE("reconnecting: what the next server does not take is not called safe") {
    Server server;
    server.nbdkit(memory);
    const auto disk = open_disk(server);
    write(*disk, 0, "x");
    server.stop(SIGKILL);
    server.nbdkit(scripted("echo ENOSPC >&2; exit 1", "exit 0"));
    CHECK(read(*disk, 0, 1) == std::string(1, '\0'));
    const auto error = error_of([&] { disk->flush(); });
    REQUIRE(error);
    CHECK(error->sys_errno() == EIO);
}

TEST_CASE("reconnecting: a server that says it is going has not answered") {
    Server server;
    const std::string once = server.path("once");
    std::ofstream(once).close();
    server.nbdkit(scripted("if rm " + once +
                               " 2>/dev/null; then echo ESHUTDOWN >&2; exit 1; fi; "
                               "cat >/dev/null",
                           "exit 0"));
    const auto disk = open_disk(server);
    write(*disk, 0, "x");
    CHECK_FALSE(std::filesystem::exists(once));
}

TEST_CASE("reconnecting: a connection that others still use is not left for another") {
    Server server;
    const std::string once = server.path("once");
    const std::string reading = server.path("reading");
    std::ofstream(once).close();
    std::vector<std::string> slow =
        scripted("if rm " + once +
                     " 2>/dev/null; then echo ESHUTDOWN >&2; exit 1; fi; "
                     "cat >/dev/null",
                 "exit 0");
    slow.push_back("thread_model=echo parallel");
    slow[2] = "pread=touch " + reading + "; sleep 1.5; head -c $3 /dev/zero";
    server.nbdkit(slow);
    const auto disk = open_disk(server);
    auto answer = std::async(std::launch::async, [&] { return read(*disk, 0, 1); });
    while (!std::filesystem::exists(reading)) {
        std::this_thread::sleep_for(1ms);
    }
    write(*disk, 0, "x");
    CHECK(answer.wait_for(0s) == std::future_status::ready);
    CHECK(answer.get() == std::string(1, '\0'));
}

TEST_CASE("reconnecting: another disk in the server's place is not taken for it") {
    Server server;
    server.nbdkit(memory);
    const auto disk = open_disk(server, 300ms);
    write(*disk, 0, "x");
    server.stop(SIGKILL);
    server.nbdkit({"memory", "2M"});
    const auto error = error_of([&] { read(*disk, 0, 1); });
    REQUIRE(error);
    CHECK(std::string(error->what()).find("another disk") != std::string::npos);
}

TEST_CASE("reconnecting: many writers, a server that dies again and again, and nothing is lost") {
    Server server;
    server.nbdkit(memory);
    const auto disk = open_disk(server);
    constexpr unsigned writers = 6;
    std::atomic<bool> enough{false};
    std::vector<std::string> last(writers);
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < writers; ++n) {
        threads.emplace_back([&, n] {
            for (unsigned i = 0; !enough; ++i) {
                last[n] = std::to_string(10'000'000 + i);
                write(*disk, n * 512, last[n]);
            }
        });
    }
    for (int round = 0; round < 4; ++round) {
        std::this_thread::sleep_for(50ms);
        server.stop(SIGKILL);
        server.nbdkit(memory);
    }
    enough = true;
    for (std::thread& thread : threads) {
        thread.join();
    }
    for (unsigned n = 0; n < writers; ++n) {
        CHECK(read(*disk, n * 512, 8) == last[n]);
    }
}
