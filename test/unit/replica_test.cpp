// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/checksum.h"
#include "nbd-proxy/frame_codec.h"
#include "nbd-proxy/replica.h"

#include "test/unit/memory_backend.h"

#include <atomic>
#include <cstring>
#include <future>
#include <limits>
#include <thread>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

constexpr uint64_t size = 64 * KiB;

struct Fixture {
    MemoryBackend image{size};
    std::mutex mutex;
    std::vector<std::string> events;
    ReplicaIdentity identity{.generation = 3, .block_size = 4096};
    uint64_t session = 1;
    std::unique_ptr<Replica> replica;
    std::atomic<bool> client_gone{false};

    Fixture() { restart(); }

    void restart() {
        const auto note = [this](std::string text) {
            const std::lock_guard lock(mutex);
            events.push_back(std::move(text));
        };
        replica = std::make_unique<Replica>(
            image,
            identity,
            ReplicaEvents{
                .session = [note](const StreamId& id) { note(fmt::format("session {}", id.session)); },
                .base = [note](Lsn base) { note(fmt::format("base {}", base.v)); },
                .consistency = [note](bool yes) { note(yes ? "consistent" : "inconsistent"); },
                .handover = [note](Lsn lsn, const TokenHash& hash) { note(fmt::format("handover {} {}", lsn.v, static_cast<int>(hash[0]))); },
                .voided = [note] { note("void"); }},
            [this] { return client_gone.load(); });
    }

    FrameHeader header(uint64_t first, size_t count, uint64_t after) const {
        FrameHeader header;
        header.stream = {3, 1, session};
        header.first = Lsn(first);
        header.next = Lsn(first + count);
        header.after = Lsn(after);
        return header;
    }
    void send(const FrameHeader& header, const std::vector<Op>& ops, std::byte value = std::byte{1}, bool fua = false) {
        uint64_t length = 0;
        for (const Op& op : ops) {
            length += has_data(op.type) ? op.where.length : 0;
        }
        std::vector<std::byte> frame(frame_prefix_size(ops.size()) + length, value);
        encode_frame(frame, header, ops);
        replica->apply(frame, fua);
    }
    void open(std::optional<Lsn> base) {
        FrameHeader header = this->header(0, 0, 0);
        header.open = true;
        header.base = base;
        std::vector<std::byte> frame(frame_header_size);
        encode_frame(frame, header, {});
        replica->apply(frame, false);
    }
    void open_session(uint64_t base = 0) {
        open(std::nullopt);
        replica->state();
        open(Lsn(base));
    }
    ReplicaState state() {
        std::string why;
        return decode_state(replica->state(), &why).value();
    }
    std::string last_event() {
        const std::lock_guard lock(mutex);
        return events.empty() ? "" : events.back();
    }
};

template <typename Body>
int errno_of(Body&& body) {
    try {
        body();
        return 0;
    } catch (const Error& error) {
        return error.sys_errno();
    }
}

} // namespace

TEST_CASE("replica: frames are applied, and marks told") {
    Fixture f;
    f.open_session();
    CHECK((f.events == std::vector<std::string>{"session 1", "base 0"}));
    f.send(f.header(1, 2, 0), {{OpType::write, {0, 10}}, {OpType::write, {5, 2}}});
    f.send(f.header(3, 1, 0), {{OpType::zero, {0, 2}}});
    f.send(f.header(4, 3, 3), {{OpType::flush, {}}, {OpType::consistent, {}}, {OpType::inconsistent, {}}});
    CHECK(f.last_event() == "inconsistent");
    f.send(f.header(7, 1, 6), {{OpType::handover, {0, 32}}}, std::byte{9}, true);
    CHECK(f.last_event() == "handover 7 9");
    f.send(f.header(8, 1, 7), {{OpType::void_, {}}});
    CHECK(f.last_event() == "void");
    const auto bytes = f.image.bytes();
    CHECK(bytes[1] == std::byte{0});
    CHECK(bytes[2] == std::byte{1});
    CHECK(f.state().applied.v == 8);
    CHECK(f.state().durable.v == 7);
}

TEST_CASE("replica: who waits for a frame that never comes ends with its client") {
    Fixture f;
    f.open_session();
    f.client_gone = true;
    CHECK(errno_of([&] { f.send(f.header(3, 1, 2), {{OpType::write, {0, 10}}}); }) == ESHUTDOWN);
    CHECK(errno_of([&] { f.send(f.header(2, 1, 0), {{OpType::write, {0, 10}}}, std::byte{1}, true); }) == ESHUTDOWN);
    f.client_gone = false;
    // What was not begun comes again, over another connection.
    f.send(f.header(1, 1, 0), {{OpType::write, {20, 10}}});
    f.send(f.header(3, 1, 2), {{OpType::write, {0, 10}}}, std::byte{4});
    CHECK(f.image.bytes()[0] == std::byte{4});
    CHECK(f.state().applied.v == 3);
}

TEST_CASE("replica: compressed frames are applied, and nothing of a damaged one is") {
    Fixture f;
    f.open_session();
    const std::vector<Op> ops{{OpType::write, {0, 3000}}, {OpType::zero, {100, 50}}, {OpType::write, {8192, 3000}}};
    const std::vector<std::byte> data(6000, std::byte{7});
    std::vector<std::byte> coded(6000);
    coded.resize(FrameEncoder().encode(data, coded, 1));
    REQUIRE(!coded.empty());
    const auto send = [&](uint64_t first, uint32_t raw_length, size_t damaged_at) {
        std::vector<std::byte> frame(frame_prefix_size(ops.size()) + coded.size());
        std::copy(coded.begin(), coded.end(), frame.end() - static_cast<ptrdiff_t>(coded.size()));
        if (damaged_at < coded.size()) {
            frame[frame.size() - coded.size() + damaged_at] ^= std::byte{0xff};
        }
        std::vector<Op> table = ops;
        table[2].where.length = raw_length - 3000;
        encode_frame(frame, f.header(first, table.size(), 0), table, raw_length);
        f.replica->apply(frame, false);
    };
    CHECK(errno_of([&] { send(1, 6000, 0); }) == EINVAL);
    CHECK(errno_of([&] { send(1, 6001, coded.size()); }) == EINVAL);
    CHECK(errno_of([&] { send(1, 5999, coded.size()); }) == EINVAL);
    CHECK(f.image.changes == 0);
    send(1, 6000, coded.size());
    const auto bytes = f.image.bytes();
    CHECK(bytes[99] == std::byte{7});
    CHECK(bytes[100] == std::byte{0});
    CHECK(bytes[8192 + 2999] == std::byte{7});
    CHECK(bytes[8192 + 3000] == std::byte{0});
    CHECK(f.state().applied.v == 3);
}

TEST_CASE("replica: a frame waits until its turn has come") {
    Fixture f;
    f.open_session();
    auto second = std::async(std::launch::async,
                             [&] { f.send(f.header(2, 1, 1), {{OpType::write, {0, 10}}}, std::byte{2}); });
    CHECK(second.wait_for(20ms) == std::future_status::timeout);
    CHECK(f.image.changes == 0);
    f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}}, std::byte{1});
    second.get();
    CHECK(f.image.bytes()[0] == std::byte{2});
}

TEST_CASE("replica: FUA and flush mean that everything before is on disk") {
    Fixture f;
    f.open_session();
    f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}});
    CHECK(f.state().durable.v == 0);
    const unsigned before = f.image.flushes;
    f.replica->flush();
    CHECK(f.image.flushes == before + 1);
    CHECK(f.state().durable.v == 1);
    // FUA waits for what is missing before it.
    auto later = std::async(std::launch::async, [&] {
        f.send(f.header(3, 1, 0), {{OpType::write, {10, 10}}}, std::byte{1}, true);
    });
    CHECK(later.wait_for(20ms) == std::future_status::timeout);
    f.send(f.header(2, 1, 0), {{OpType::write, {20, 10}}});
    later.get();
    CHECK(f.state().durable.v == 3);
}

TEST_CASE("replica: a session ends what waits in the one before, and state waits for its workers") {
    Fixture f;
    f.open_session();
    const FrameHeader ahead = f.header(5, 1, 4);
    auto waiting = std::async(std::launch::async, [&] {
        return errno_of([&] { f.send(ahead, {{OpType::write, {0, 10}}}); });
    });
    f.image.block();
    FrameHeader slow = f.header(1, 1, 0);
    auto working = std::async(std::launch::async,
                              [&] { f.send(slow, {{OpType::write, {0, 10}}}, std::byte{1}); });
    f.image.wait_for_blocked(1);
    f.session = 2;
    f.open(std::nullopt);
    CHECK(waiting.get() == EINVAL);
    CHECK(errno_of([&] { f.open(Lsn(0)); }) == EINVAL); // not before the state was asked for
    auto state = std::async(std::launch::async, [&] { return f.state(); });
    CHECK(state.wait_for(20ms) == std::future_status::timeout);
    f.image.unblock();
    CHECK(state.get().applied.v == 0); // applied in an older session: it will come again
    working.get();
    f.open(Lsn(0));
    f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}}, std::byte{2});
    CHECK(f.image.bytes()[0] == std::byte{2});
}

TEST_CASE("replica: a failed write ends the session, and every later answer says with what") {
    Fixture f;
    f.open_session();
    f.image.fail_changes = ENOSPC;
    CHECK(errno_of([&] { f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}}); }) == ENOSPC);
    // Part of it may be there, after whatever the image was consistent with.
    CHECK(f.last_event() == "inconsistent");
    f.image.fail_changes = 0;
    CHECK(errno_of([&] { f.send(f.header(2, 1, 0), {{OpType::write, {20, 10}}}); }) == ENOSPC);
    f.session = 2;
    f.open_session();
    f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}});
    CHECK(f.state().applied.v == 1);
}

TEST_CASE("replica: who waits for a frame that fails is told so") {
    Fixture f;
    f.open_session();
    auto durable = std::async(std::launch::async, [&] {
        return errno_of([&] { f.send(f.header(2, 1, 0), {{OpType::write, {10, 10}}}, std::byte{1}, true); });
    });
    while (f.image.bytes()[10] == std::byte{0}) {
        std::this_thread::yield();
    }
    f.image.fail_changes = ENOSPC;
    CHECK(errno_of([&] { f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}}); }) == ENOSPC);
    const bool told = durable.wait_for(10s) == std::future_status::ready;
    CHECK(told);
    f.replica->close();
    CHECK(durable.get() == (told ? ENOSPC : ESHUTDOWN));
}

TEST_CASE("replica: a flush says nothing about what a later session applies again") {
    Fixture f;
    f.open_session();
    f.send(f.header(1, 2, 0), {{OpType::write, {0, 10}}, {OpType::write, {0, 10}}});
    f.image.block();
    auto flush = std::async(std::launch::async, [&] { f.replica->flush(); });
    f.image.wait_for_blocked(1);
    f.session = 2;
    f.open_session(1);
    auto again = std::async(std::launch::async, [&] { f.send(f.header(2, 1, 0), {{OpType::write, {0, 10}}}); });
    f.image.wait_for_blocked(2);
    f.image.unblock();
    flush.get();
    again.get();
    CHECK(f.state().applied.v == 2);
    CHECK(f.state().durable.v <= 1);
    f.replica->flush();
    CHECK(f.state().durable.v == 2);
}

TEST_CASE("replica: after a failed flush nothing is durable") {
    Fixture f;
    f.open_session();
    f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}});
    f.image.fail_flushes = EIO;
    CHECK(errno_of([&] { f.replica->flush(); }) == EIO);
    f.image.fail_flushes = 0;
    const unsigned before = f.image.flushes;
    CHECK(errno_of([&] { f.replica->flush(); }) == EIO);
    CHECK(errno_of([&] { f.send(f.header(2, 1, 0), {{OpType::write, {0, 10}}}, std::byte{1}, true); }) == EIO);
    CHECK(errno_of([&] { f.send(f.header(3, 1, 2), {{OpType::handover, {0, 32}}}); }) == EIO);
    CHECK(f.image.flushes == before);
    CHECK(f.last_event() == "inconsistent");
    CHECK(f.state().durable.v == 0);
}

TEST_CASE("replica: what is not a frame, or not for this disk, is refused and changes nothing") {
    Fixture f;
    f.open_session();
    CHECK(errno_of([&] { f.replica->apply(std::vector<std::byte>(200), false); }) == EINVAL);
    CHECK(errno_of([&] { f.send(f.header(1, 1, 0), {{OpType::write, {size - 5, 10}}}); }) == EINVAL);
    CHECK(errno_of([&] { f.send(f.header(1, 1, 0), {{OpType::fill, {0, 10}}}); }) == EINVAL);
    CHECK(f.image.changes == 0);
}

// A source that has the key, and says whatever it likes with right checksums.
TEST_CASE("replica: a malicious source writes nothing but the disk, and no part of a bad frame") {
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    Fixture f;
    f.open_session();
    const auto refused = [&](const char* what, const FrameHeader& header, const std::vector<Op>& ops) {
        INFO(what);
        CHECK(errno_of([&] { f.send(header, ops, std::byte{0xee}); }) == EINVAL);
        CHECK(f.image.changes == 0);
    };
    const Op good{OpType::write, {0, 10}};
    const auto one = [&](const char* what, const Op& bad) {
        refused(what, f.header(1, 1, 0), {bad});
        refused(what, f.header(1, 2, 0), {good, bad});
        refused(what, f.header(1, 2, 0), {bad, good});
    };
    one("behind the end", {OpType::write, {size, 1}});
    one("across the end", {OpType::write, {size - 1, 2}});
    one("its end overflows", {OpType::zero, {most - 1, 4}});
    one("its end overflows to the start", {OpType::trim, {1, most}});
    one("nothing", {OpType::write, {5, 0}});
    one("a fill", {OpType::fill, {0, 10}});
    one("an unknown operation", {static_cast<OpType>(77), {0, 1}});
    one("a mark with a range", {OpType::consistent, {0, 1}});
    one("a handover that is too short", {OpType::handover, {0, 31}});
    one("a handover that is too long", {OpType::handover, {0, 4096}});
    refused("more LSNs than operations", f.header(1, 2, 0), {good});
    refused("fewer", f.header(1, 1, 0), {good, good});
    refused("LSNs that wrap", f.header(most, 1, 0), {good});
    refused("after itself", f.header(1, 1, 1), {good});
    refused("a session that was not opened", [&] { auto h = f.header(1, 1, 0); ++h.stream.session; return h; }(), {good});
    refused("an older session", [&] { auto h = f.header(1, 1, 0); --h.stream.session; return h; }(), {good});
    refused("another stream", [&] { auto h = f.header(1, 1, 0); ++h.stream.counter; return h; }(), {good});
    refused("another generation", [&] { auto h = f.header(1, 1, 0); ++h.stream.generation; return h; }(), {good});
    refused("another migration", [&] { auto h = f.header(1, 1, 0); h.migration[3] = std::byte{1}; return h; }(), {good});

    // What the table and the lengths say is not what is there: each field at each extreme.
    const std::vector<Op> ops{good, good};
    std::vector<std::byte> frame(frame_prefix_size(ops.size()) + 20, std::byte{0xee});
    encode_frame(frame, f.header(1, 2, 0), ops);
    constexpr size_t count_at = 96, raw_length_at = 100, coded_length_at = 104;
    for (const size_t at : {count_at, raw_length_at, coded_length_at}) {
        for (const uint32_t value : {0U, 1U, 3U, 1024U, 1025U, 0x7fffffffU, 0x80000000U, 0xffffffffU}) {
            auto bad = frame;
            std::memcpy(&bad[at], &value, sizeof value);
            const Hash128 checksum = hash128(bad.data() + sizeof checksum, bad.size() - sizeof checksum);
            std::memcpy(bad.data(), &checksum, sizeof checksum);
            CHECK(errno_of([&] { f.replica->apply(bad, false); }) == EINVAL);
        }
    }
    auto unsealed = frame;
    unsealed.back() ^= std::byte{1};
    CHECK(errno_of([&] { f.replica->apply(unsealed, false); }) == EINVAL);
    CHECK(f.image.changes == 0);

    // It lives, and takes what is right; and that once.
    f.replica->apply(frame, true);
    CHECK(f.image.changes == 2);
    CHECK(errno_of([&] { f.replica->apply(frame, false); }) == EINVAL);
    CHECK(f.state().applied.v == 2);
    const auto bytes = f.image.bytes();
    CHECK(std::all_of(bytes.begin() + 10, bytes.end(), [](std::byte b) { return b == std::byte{0}; }));

    // A session whose base leaves no LSN, and the next one.
    f.session = 2;
    f.open_session(most);
    CHECK(errno_of([&] { f.send(f.header(most - 1, 1, 0), {good}); }) == EINVAL);
    f.session = most;
    f.open_session(2);
    f.session = 0;
    CHECK(errno_of([&] { f.open(std::nullopt); }) == EINVAL);
    f.session = most;
    f.send(f.header(3, 1, 2), {good});
    CHECK(f.state().applied.v == 3);
}

TEST_CASE("replica: close waits for what is being applied, and lets nothing else in") {
    Fixture f;
    f.open_session();
    auto waiting = std::async(std::launch::async, [&] {
        return errno_of([&] { f.send(f.header(5, 1, 4), {{OpType::write, {0, 10}}}); });
    });
    f.image.block();
    auto working = std::async(std::launch::async,
                              [&] { f.send(f.header(1, 1, 0), {{OpType::write, {0, 10}}}); });
    f.image.wait_for_blocked(1);
    auto close = std::async(std::launch::async, [&] { f.replica->close(); });
    CHECK(waiting.get() == ESHUTDOWN);
    CHECK(close.wait_for(20ms) == std::future_status::timeout);
    f.image.unblock();
    close.get();
    working.get();
    CHECK(f.image.changes == 1);
    CHECK(errno_of([&] { f.send(f.header(2, 1, 0), {{OpType::write, {0, 10}}}); }) == ESHUTDOWN);
    CHECK(errno_of([&] { f.open(std::nullopt); }) == ESHUTDOWN);
}
