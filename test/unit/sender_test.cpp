// SPDX-License-Identifier: GPL-2.0-or-later
// The sending end against real servers that know no frames.
#include "nbd-proxy/sender.h"
#include "test/unit/memory_backend.h"
#include "test/unit/nbd_server.h"

#include <fstream>

using namespace drover;
using namespace std::chrono_literals;

namespace {

constexpr uint64_t disk_size = 1 * MiB;

// A disk and what sends it.
struct Sending {
    explicit Sending(SenderOptions options) {
        options.plain = true;
        sender = std::make_shared<Sender>(tracked, disk, options, [this] {
            told_in_sync = sender->status().phase == Sender::Phase::in_sync;
        });
        tracked->wake = [this] { sender->wake(); };
    }
    // Whether it says so within a time that is long enough.
    bool soon_in_sync() const {
        const auto end = std::chrono::steady_clock::now() + 20s;
        while (!told_in_sync && std::chrono::steady_clock::now() < end) {
            std::this_thread::sleep_for(1ms);
        }
        return told_in_sync;
    }

    MemoryBackend disk{disk_size};
    std::shared_ptr<Tracked> tracked = std::make_shared<Tracked>(
        BlockGeometry{disk_size, 64 * KiB}, 4096, Source::Limits{.prefix_order = false});
    std::atomic<bool> told_in_sync{false};
    std::shared_ptr<Sender> sender;
};

} // namespace

TEST_CASE("sender: status tells whether the links are encrypted") {
    Server server;
    const std::string keys = server.path("keys");
    std::ofstream(keys) << "alice:00112233445566778899aabbccddeeff\n";
    for (const bool tls : {false, true}) {
        std::vector<std::string> arguments{"memory", std::to_string(disk_size)};
        if (tls) {
            arguments.insert(arguments.begin(), {"--tls=require", "--tls-psk=" + keys});
        }
        server.nbdkit(arguments);
        SenderOptions options{.to = server.options()};
        options.to.psk_user = tls ? "alice" : "";
        options.to.psk_file = keys;
        Sending source(options);
        source.sender->start();
        CHECK(source.soon_in_sync());
        CHECK(source.sender->status().tls == tls);
        source.sender->end();
        server.stop(SIGTERM);
    }
}

TEST_CASE("sender: in sync as soon as the last answer is there") {
    Server server;
    server.nbdkit({"memory", std::to_string(disk_size)});
    Sending source({.to = server.options(), .tick = 1h});
    source.sender->start();
    CHECK(source.soon_in_sync());
}

TEST_CASE("sender: in sync no longer than it is") {
    Server server;
    server.nbdkit({"--filter=delay", "memory", std::to_string(disk_size), "wdelay=2"});
    Sending source({.to = server.options(), .tick = 1h});
    source.sender->start();
    CHECK(source.soon_in_sync());
    // A write that the log does not take: nothing of it is in the lag.
    const std::string data(4096, 'x');
    source.disk.write(data.data(), {0, data.size()}, false);
    {
        const std::lock_guard lock(source.tracked->mutex);
        source.tracked->source.spoiled({0, data.size()});
    }
    CHECK((source.sender->status().phase != Sender::Phase::in_sync));
}
