// SPDX-License-Identifier: GPL-2.0-or-later
// The sending end against real servers that know no frames, and against one that lies about them.
#include "nbd-proxy/sender.h"
#include "test/unit/memory_backend.h"
#include "test/unit/nbd_server.h"

#include <fstream>
#include <limits>

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

namespace {

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// A destination that takes whatever it is sent, and whose `state` is the file that is there.
class Liar {
public:
    Liar() {
        honest.stream = {2, 1, 1};
        honest.size = disk_size;
        honest.block_size = 64 * KiB;
        honest.migration.fill(std::byte{1});
        honest.uuid.fill(std::byte{2});
        say(honest);
    }

    void say(const ReplicaState& state) const {
        const auto bytes = encode_state(state);
        say(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    }
    void say(const std::string& bytes) const {
        std::ofstream(server_.path("state"), std::ios::binary) << bytes;
    }
    // size: of the export `state`.
    void start(size_t size = state_size) {
        const std::string state = server_.path("state");
        server_.nbdkit(
            {"eval",
             "open=printf %s \"$3\"",
             fmt::format("get_size=test \"$2\" = state && echo {} || echo 9223372036854775807",
                         size),
             "can_write=test \"$2\" != state || exit 3",
             "can_flush=exit 0",
             "can_fua=echo native",
             "flush=exit 0",
             "thread_model=echo parallel",
             fmt::format("pread=head -c $3 {}", state),
             "pwrite=cat >/dev/null"});
    }
    void stop() { server_.stop(SIGKILL); }
    // Comes in its place with no time between, in which a session would be tried and counted.
    void replace(Liar& other) const {
        server_.take_over(other.server_);
        other.stop();
    }

    SenderOptions options() const {
        SenderOptions options{.to = server_.options(),
                              .migration = honest.migration,
                              .stream = {2, 1, 0},
                              .uuid = honest.uuid,
                              .connections = 1};
        options.tick = 10ms;
        return options;
    }

    ReplicaState honest;

private:
    Server server_;
};

struct Lied {
    explicit Lied(const SenderOptions& options)
        : sender(std::make_shared<Sender>(tracked, disk, options, [] {})) {
        tracked->wake = [this] { sender->wake(); };
    }
    // What the first session fails with.
    std::string refusal() const {
        try {
            sender->start();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
    Sender::Phase phase() const { return sender->status().phase; }
    uint64_t session() const {
        const std::lock_guard lock(tracked->mutex);
        return tracked->source.stream().session;
    }
    template <typename Condition>
    bool soon(Condition&& condition) const {
        const auto end = std::chrono::steady_clock::now() + 20s;
        while (!condition() && std::chrono::steady_clock::now() < end) {
            std::this_thread::sleep_for(1ms);
        }
        return condition();
    }

    MemoryBackend disk{disk_size};
    std::shared_ptr<Tracked> tracked =
        std::make_shared<Tracked>(BlockGeometry{disk_size, 64 * KiB}, 4096, Source::Limits());
    std::shared_ptr<Sender> sender;
};

} // namespace

TEST_CASE("sender: a destination whose state is not of this disk, or no state, is refused") {
    Liar liar;
    liar.start();
    const auto refusal = [&] { return Lied(liar.options()).refusal(); };
    const auto says = [&](auto&& change) {
        ReplicaState state = liar.honest;
        change(state);
        liar.say(state);
        return refusal();
    };
    const char* const other = "the replica of another disk";
    CHECK(has(says([](ReplicaState& s) { s.uuid[0] = std::byte{9}; }), other));
    CHECK(has(says([](ReplicaState& s) { s.migration[0] = std::byte{9}; }), other));
    for (const uint64_t size : {uint64_t{0}, disk_size - 1, disk_size + 1, ~uint64_t{0}}) {
        CHECK(has(says([&](ReplicaState& s) { s.size = size; }), other));
    }
    CHECK(has(says([](ReplicaState& s) { s.durable = Lsn(1); }), "durable is above"));
    CHECK(has(says([](ReplicaState& s) { s.stream.session = 7; }), "never sent"));
    liar.say(std::string(state_size, 'x'));
    CHECK(has(refusal(), "wrong checksum"));
    // An export that is too short for an answer.
    liar.stop();
    liar.start(16);
    CHECK(refusal() != "");
    // And where nothing is a lie it goes well.
    liar.stop();
    liar.start();
    CHECK(says([](ReplicaState&) {}) == "");
}

TEST_CASE("sender: a destination that claims what was never sent ends the stream, nothing else") {
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    const Lsn sent = [] {
        Liar liar;
        liar.start();
        Lied source(liar.options());
        source.sender->start();
        REQUIRE(source.soon([&] { return source.phase() == Sender::Phase::in_sync; }));
        return source.sender->status().progress.last;
    }();
    for (const uint64_t claimed : {sent.v, sent.v + 1, most}) {
        for (const bool same_process : {true, false}) {
            Liar liar;
            liar.start();
            Lied source(liar.options());
            source.sender->start();
            REQUIRE(source.soon([&] { return source.phase() == Sender::Phase::in_sync; }));
            REQUIRE((source.sender->status().progress.last == sent));
            ReplicaState state = liar.honest;
            state.stream.session = 2;
            state.applied = state.durable = Lsn(claimed);
            state.instance[0] = std::byte{same_process ? uint8_t{0} : uint8_t{5}};
            Liar next;
            next.say(state);
            next.start();
            next.replace(liar);
            const bool honest = claimed == sent.v;
            CHECK(source.soon([&] {
                return honest ? source.session() == 2 && source.phase() == Sender::Phase::in_sync
                              : source.phase() == Sender::Phase::failed;
            }));
            const Sender::Status status = source.sender->status();
            CHECK((status.error.find("never sent") == std::string::npos) == honest);
            CHECK((status.progress.applied <= status.progress.last));
            CHECK((status.progress.durable <= status.progress.applied));
        }
    }
}
