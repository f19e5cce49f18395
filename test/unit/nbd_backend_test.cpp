// SPDX-License-Identifier: GPL-2.0-or-later
// Against real servers: nbdkit and qemu-nbd.
#include "common/error.h"
#include "common/process.h"
#include "nbd-proxy/backend.h"
#include "nbd-proxy/nbd_client.h"
#include "test/unit/nbd_server.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

using Bytes = std::vector<unsigned char>;

Bytes pattern(uint64_t length, unsigned seed) {
    std::minstd_rand random(seed);
    Bytes bytes(length);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<unsigned char>(random()); });
    return bytes;
}

Bytes read(Backend& backend, Extent where) {
    Bytes bytes(where.length, 0xee);
    backend.read(bytes.data(), where);
    return bytes;
}

std::unique_ptr<Backend> open_backend(const Server& server, bool read_only = false) {
    return open_nbd_backend(server.uri(), read_only, 30s);
}

template <typename Call>
Error error_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return error;
    }
    FAIL("no error");
    return {ErrorKind::state, ""};
}

// Random changes at any alignment against a copy in memory. Trimmed ranges are written after,
// since they may read as anything.
void compare_with_model(Backend& backend, unsigned seed, int rounds = 200) {
    std::minstd_rand random(seed);
    const uint64_t size = backend.size();
    Bytes model = read(backend, {0, size});
    for (int i = 0; i < rounds; ++i) {
        const uint64_t offset = random() % size;
        const Extent where{offset, 1 + random() % std::min<uint64_t>(size - offset, 200'000)};
        const auto begin = model.begin() + static_cast<ptrdiff_t>(where.offset);
        const auto end = begin + static_cast<ptrdiff_t>(where.length);
        const bool fua = random() % 8 == 0;
        if (random() % 3 == 0) {
            backend.zero(where, random() % 2 == 0, false, fua);
            std::fill(begin, end, 0);
        } else {
            if (random() % 3 == 0 && backend.features().can_trim) {
                backend.trim(where, fua);
            }
            const Bytes data = pattern(where.length, random());
            backend.write(data.data(), where, fua);
            std::copy(data.begin(), data.end(), begin);
        }
        const uint64_t from = random() % size;
        const Extent look{from, std::min<uint64_t>(size - from, 300'000)};
        const Bytes found = read(backend, look);
        REQUIRE(
            std::equal(found.begin(), found.end(), model.begin() + static_cast<ptrdiff_t>(from)));
    }
    backend.flush();
    REQUIRE(read(backend, {0, size}) == model);
}

} // namespace

TEST_CASE("nbdkit memory and file, qemu-nbd raw and qcow2 hold what was written") {
    const auto check = [](const Server& server, uint64_t size) {
        const auto backend = open_backend(server);
        CHECK(backend->size() == size);
        CHECK_FALSE(backend->read_only());
        CHECK(backend->features().can_extents);
        CHECK(backend->features().can_trim);
        CHECK(backend->name() == server.uri());
        compare_with_model(*backend, 1);
    };
    {
        Server server;
        check(server.nbdkit({"memory", "3000001"}), 3'000'001);
    }
    {
        Server server;
        const std::string file = server.path("disk");
        std::ofstream(file).close();
        std::filesystem::resize_file(file, 3'000'001);
        check(server.nbdkit({"file", file}), 3'000'001);
    }
    {
        Server server;
        check(server.qemu_nbd("raw", "3M"), 3 * MiB);
    }
    {
        Server server;
        check(server.qemu_nbd("qcow2", "3M"), 3 * MiB);
    }
}

TEST_CASE("a minimum block is read, changed and written back; threads lose nothing in it") {
    Server server;
    server.nbdkit({"--filter=blocksize-policy",
                   "memory",
                   "1M",
                   "blocksize-minimum=4096",
                   "blocksize-maximum=65536",
                   "blocksize-error-policy=error"});
    const auto backend = open_backend(server);
    CHECK(backend->features().minimum == 1);
    compare_with_model(*backend, 2);

    constexpr uint64_t piece = 1000;
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < 4; ++n) {
        threads.emplace_back([&, n] {
            const Bytes data(piece, static_cast<unsigned char>(n + 1));
            for (uint64_t at = n * piece; at + piece <= 200'000; at += 4 * piece) {
                backend->write(data.data(), {at, piece}, false);
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    const Bytes found = read(*backend, {0, 200'000});
    size_t wrong = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        wrong += found[i] != 1 + i / piece % 4;
    }
    CHECK(wrong == 0);
}

TEST_CASE("a server with few features: the rest is made up for, or said to be missing") {
    Server server;
    server.nbdkit(
        {"--no-sr", "--filter=nozero", "--filter=fua", "--filter=nocache", "memory", "1M"});
    const auto backend = open_backend(server);
    CHECK(backend->features().can_zero);
    CHECK_FALSE(backend->features().can_fast_zero);
    CHECK_FALSE(backend->features().can_extents);
    CHECK_FALSE(backend->features().can_cache);
    compare_with_model(*backend, 3, 50);
    CHECK(error_of([&] { backend->zero({0, 4096}, true, true, false); }).sys_errno() == EOPNOTSUPP);
    const auto extents = backend->extents({4096, 8192}, false);
    REQUIRE(extents.size() == 1);
    CHECK(extents[0].length == 8192);
    CHECK_FALSE(extents[0].zero);
}

TEST_CASE("a server that has no trim, or says that it cannot: a trim is taken all the same") {
    const std::vector<std::string> disk{"eval",
                                        "get_size=echo 1M",
                                        "pread=head -c $3 /dev/zero",
                                        "pwrite=cat >/dev/null",
                                        "flush=exit 0"};
    for (const bool offered : {false, true}) {
        Server server;
        std::vector<std::string> arguments = disk;
        if (offered) {
            arguments.push_back("can_trim=exit 0");
            arguments.push_back("trim=echo EOPNOTSUPP no holes here >&2; exit 1");
        }
        server.nbdkit(arguments);
        const auto backend = open_backend(server);
        CHECK(backend->features().can_trim == offered);
        CHECK(backend->trim({0, 64 * KiB}, false) == offered); // then perhaps in part
        backend->flush();
    }
}

TEST_CASE("fua and flush reach the server: a write is durable by either") {
    for (const bool native : {false, true}) {
        Server server;
        const std::string file = server.path("disk");
        std::ofstream(file).close();
        std::filesystem::resize_file(file, 1 * MiB);
        const std::string log = server.path("requests");
        std::vector<std::string> arguments{
            "--filter=log", "--filter=fua", "file", file, "logfile=" + log};
        if (native) {
            arguments.push_back("fuamode=native"); // else none, to the client
        }
        server.nbdkit(arguments);
        {
            const auto backend = open_backend(server);
            backend->write("x", {0, 1}, true);
        }
        server.stop(SIGTERM);
        std::ifstream stream(log);
        const std::string text{std::istreambuf_iterator<char>(stream), {}};
        CAPTURE(text);
        const bool flushed = text.find(" Flush ") != std::string::npos;
        const bool fua = text.find("fua=1") != std::string::npos;
        CHECK(flushed == !native);
        CHECK(fua == native);
    }
}

TEST_CASE("extents come from the server, clipped") {
    Server server;
    server.nbdkit({"sparse-random", "16M", "percent=50", "seed=1"});
    const auto backend = open_backend(server, true);
    CHECK(backend->read_only());
    const Bytes all = read(*backend, {0, backend->size()});
    uint64_t at = 12'345;
    const Extent asked{at, 15 * MiB};
    bool holes = false, data = false;
    while (at < asked.end()) {
        const auto found = backend->extents({at, asked.end() - at}, false);
        REQUIRE_FALSE(found.empty());
        for (const BackendExtent& extent : found) {
            REQUIRE(extent.length > 0);
            const auto begin = all.begin() + static_cast<ptrdiff_t>(at);
            const bool zero = std::all_of(begin,
                                          begin + static_cast<ptrdiff_t>(extent.length),
                                          [](unsigned char byte) { return byte == 0; });
            CHECK((!extent.zero || zero));
            (extent.zero ? holes : data) = true;
            at += extent.length;
        }
    }
    CHECK(at == asked.end());
    CHECK(holes);
    CHECK(data);
    CHECK(backend->extents({0, 16 * MiB}, true).size() == 1);
}

TEST_CASE("TLS-PSK: with the key only, and the server's errors and refusals are told") {
    Server server;
    const std::string keys = server.path("keys.psk"), wrong = server.path("wrong.psk");
    for (const std::string& file : {keys, wrong}) {
        REQUIRE(run_command({"psktool", "-u", "alice", "-p", file}, {}, 10s).status.success());
    }
    server.nbdkit({"--tls=require", "--tls-psk=" + keys, "memory", "1M"});
    NbdClientOptions options = server.options();
    options.psk_user = "alice";
    options.psk_file = keys;
    {
        NbdClient client(options);
        compare_with_model(client, 4, 50);
    }
    {
        const auto backend = open_nbd_backend(
            "nbds+unix://alice@/?socket=" + server.socket() + "&tls-psk-file=" + keys, false, 30s);
        compare_with_model(*backend, 5, 10);
    }
    options.psk_file = wrong;
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::peer);
    CHECK(error_of([&] { NbdClient client(server.options()); }).kind() == ErrorKind::peer);
}

TEST_CASE("TCP, by host, port and the export's name") {
    Server server;
    const uint16_t port = server.nbdkit_tcp(
        {"--filter=exportname", "memory", "1M", "exportname-strict=true", "exportname=disk/1"});
    NbdClientOptions options;
    options.host = "127.0.0.1";
    options.port = std::to_string(port);
    options.export_name = "disk/1";
    {
        NbdClient client(options);
        CHECK(client.name() == "nbd://127.0.0.1:" + options.port + "/disk/1");
        compare_with_model(client, 6, 20);
    }
    options.export_name = "other";
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::peer);
    server.stop(SIGTERM);
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::peer);
}

TEST_CASE("a server that does not answer the handshake is given up in time") {
    Listener listener; // nobody accepts
    NbdClientOptions options;
    options.host = "127.0.0.1";
    options.port = std::to_string(listener.port);
    options.connect_timeout = 100ms;
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::timeout);
}

TEST_CASE("the server's errors keep their errno, and the connection lives on") {
    Server server;
    server.nbdkit(
        {"--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"});
    NbdClient client(server.options());
    const Error error = error_of([&] { client.write("x", {5, 1}, false); });
    CHECK(error.sys_errno() == ENOSPC);
    CHECK(error.kind() == ErrorKind::io);
    CHECK(std::string(error.what()).find("write 1 bytes at 5") != std::string::npos);
    CHECK(client.alive());
    CHECK(read(client, {0, 512}) == Bytes(512));
}

TEST_CASE("a read-only server is told from one that can be written") {
    Server server;
    server.nbdkit({"--readonly", "memory", "1M"});
    CHECK(error_of([&] { open_backend(server); }).sys_errno() == EROFS);
    const auto backend = open_backend(server, true);
    CHECK(error_of([&] { backend->write("x", {0, 1}, false); }).sys_errno() == EROFS);
    CHECK(read(*backend, {0, 512}) == Bytes(512));
}

TEST_CASE("when the server dies, what is in flight and what comes later fails at once") {
    Server server;
    server.nbdkit({"--filter=delay", "memory", "1M", "rdelay=60"});
    NbdClient client(server.options());
    std::atomic<int> failed = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
        threads.emplace_back([&] {
            const Error error = error_of([&] { read(client, {0, 512}); });
            failed += error.kind() == ErrorKind::peer && error.sys_errno() == EIO;
        });
    }
    CHECK(client.alive());
    std::this_thread::sleep_for(100ms); // most are in flight; one that is not fails as well
    server.stop(SIGKILL);
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(failed == 6);
    CHECK_FALSE(client.alive());
    CHECK(error_of([&] { client.flush(); }).kind() == ErrorKind::peer);
    CHECK(error_of([&] { client.write("x", {0, 1}, false); }).kind() == ErrorKind::peer);
}

TEST_CASE("a server may die while a client of it takes its leave") {
    Server server;
    server.nbdkit({"memory", "1M"});
    NbdClientOptions options = server.options();
    options.connections = 4;
    auto client = std::make_unique<NbdClient>(options);
    server.pause();
    std::thread leaving([&] { client.reset(); }); // a second for each connection
    std::this_thread::sleep_for(1500ms);
    server.stop(SIGKILL); // the others find that they are lost
    leaving.join();
}

TEST_CASE("a request that takes too long ends the client") {
    Server server;
    server.nbdkit({"--filter=delay", "memory", "1M", "wdelay=60"});
    NbdClientOptions options = server.options();
    options.request_timeout = 200ms;
    NbdClient client(options);
    CHECK(read(client, {0, 512}) == Bytes(512));
    const Error error = error_of([&] { client.write("x", {0, 1}, false); });
    CHECK(error.kind() == ErrorKind::timeout);
    CHECK_FALSE(client.alive());
    CHECK(error_of([&] { read(client, {0, 1}); }).kind() == ErrorKind::timeout);
}

TEST_CASE("requests of many threads are in flight at once, large ones too") {
    Server server;
    const std::string log = server.path("requests"), control = server.path("pause");
    server.nbdkit({"--filter=log",
                   "--filter=pause",
                   "memory",
                   "64M",
                   "logfile=" + log,
                   "pause-control=" + control});
    NbdClientOptions options = server.options();
    options.connections = 4;
    NbdClient client(options);
    const Bytes data = pattern(4 * MiB, 7);
    constexpr unsigned count = 8;
    for (unsigned n = 0; n < count; ++n) {
        client.write(data.data(), {n * data.size(), data.size()}, n % 2 == 0);
    }
    const auto tell_filter = [&](const std::string& command, const std::string& answer) {
        const RunResult result = run_command(
            {"sh", "-c", "printf " + command + " | socat -t10 - UNIX-CONNECT:" + control}, {}, 30s);
        REQUIRE(result.output == answer);
    };
    tell_filter("p", "P"); // from here on no request is answered
    std::atomic<unsigned> right{0};
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < count; ++n) {
        threads.emplace_back([&, n] {
            right += read(client, {n * data.size(), data.size()}) == data;
        });
    }
    const auto reads_begun = [&] {
        std::ifstream lines(log);
        unsigned begun = 0;
        for (std::string line; std::getline(lines, line);) {
            begun += line.find(" Read id=") != std::string::npos;
        }
        return begun;
    };
    for (int i = 0; i < 2000 && reads_begun() < count; ++i) {
        std::this_thread::sleep_for(10ms);
    }
    CHECK(reads_begun() == count);
    tell_filter("r", "R");
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(right == count);
}

TEST_CASE("options that name no server, or two, are refused") {
    NbdClientOptions options;
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::usage);
    options.uri = "nbd://localhost";
    options.socket = "/nowhere";
    CHECK(error_of([&] { NbdClient client(options); }).kind() == ErrorKind::usage);
}
