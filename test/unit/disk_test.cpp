// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/disk.h"
#include "nbd-proxy/zero_scan.h"
#include "test/unit/memory_backend.h"

#include <future>
#include <random>
#include <thread>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

namespace {

constexpr uint64_t size = 32 * 4096 - 100;

std::shared_ptr<Tracked> make_tracked(Source::Limits limits = {}) {
    auto tracked = std::make_shared<Tracked>(BlockGeometry{size, 4096}, 4096, limits);
    tracked->wake = [] {};
    tracked->source.start({}, {1, 1, 0});
    return tracked;
}

void clear_map(Tracked& tracked) {
    const std::lock_guard lock(tracked.mutex);
    while (const auto at = tracked.source.next_dirty(0, size)) {
        Source::Capture capture = tracked.source.begin_capture(*at, size, MiB);
        tracked.source.commit_capture(capture, {}, {}, 1);
    }
}

Source::Progress progress(Tracked& tracked) {
    const std::lock_guard lock(tracked.mutex);
    return tracked.source.progress();
}

bool is_ready(std::future<void>& future) {
    return future.wait_for(0s) == std::future_status::ready;
}

const std::vector<std::byte> data(8192, std::byte{7});

// An owner elsewhere that answers nobody until it is stopped.
class Unreachable : public MemoryBackend {
public:
    using MemoryBackend::MemoryBackend;
    void write(const void*, Extent, bool) override {
        asked.set_value();
        stopped.get_future().wait();
        throw Error(ErrorKind::cancelled, "stopped", ESHUTDOWN);
    }
    std::promise<void> asked, stopped;
};

} // namespace

TEST_CASE("disk: held changes wait, reads do not") {
    MemoryBackend backend(size);
    Disk disk(backend, true);
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    std::vector<std::byte> buffer(512);
    disk.read(buffer.data(), {0, 512});
    disk.flush();
    std::this_thread::sleep_for(20ms);
    CHECK_FALSE(is_ready(write));
    CHECK(backend.changes == 0);
    disk.release();
    write.get();
    CHECK(backend.changes == 1);
    disk.write(data.data(), {0, 512}, false);
    CHECK(backend.changes == 2);
}

TEST_CASE("disk: what was held or paced of a client that has gone is not done") {
    MemoryBackend backend(size);
    std::atomic<bool> gone{false};
    Disk disk(backend, false, [&] { return gone.load(); });
    const auto tracked = make_tracked();
    disk.start_tracking(tracked);
    const auto write = [&] { disk.write(data.data(), {0, 512}, false, 1); };
    SUBCASE("held") {
        disk.hold();
        auto waits = std::async(std::launch::async, write);
        std::this_thread::sleep_for(20ms);
        gone = true;
        disk.release();
        CHECK_THROWS_AS(waits.get(), Error);
    }
    SUBCASE("waited for another owner, and is taken back") {
        const auto owner = std::make_shared<Unreachable>(size);
        disk.forward_to(owner);
        auto waits = std::async(std::launch::async, write);
        owner->asked.get_future().wait();
        gone = true;
        disk.take_back();
        owner->stopped.set_value();
        CHECK_THROWS_AS(waits.get(), Error);
    }
    SUBCASE("paced") {
        clear_map(*tracked);
        disk.write(data.data(), {4096, 4096}, false, 1);
        backend.changes = 0;
        for (uint64_t now_us = 0; now_us < 10'000'000 && !tracked->throttling();
             now_us += 100'000) {
            tracked->tick_throttle({.drain_rate = 1, .write_rate = MiB, .left = now_us}, now_us);
        }
        REQUIRE(tracked->throttling());
        gone = true;
        unsigned done = 0;
        const auto write_all = [&] {
            for (; done < 100; ++done) {
                write();
            }
        };
        CHECK_THROWS_AS(write_all(), Error);
        CHECK(backend.changes == done);
        backend.changes = 0;
        disk.hold(); // which lets everybody go
    }
    CHECK(backend.changes == 0);
    gone = false;
    disk.take_back();
    write();
    CHECK(backend.changes == 1);
}

TEST_CASE("disk: hold waits for what is under way, on each path") {
    MemoryBackend backend(size);
    Disk disk(backend, false);
    const auto tracked = make_tracked();
    SUBCASE("direct") {}
    SUBCASE("tracked") {
        disk.start_tracking(tracked);
    }
    backend.block();
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    backend.wait_for_blocked(1);
    auto hold = std::async(std::launch::async, [&] { disk.hold(); });
    std::this_thread::sleep_for(20ms);
    CHECK_FALSE(is_ready(hold));
    backend.unblock();
    hold.get();
    write.get();
    disk.release();
}

TEST_CASE("disk: tracking begins when no request is left that was not reported") {
    MemoryBackend backend(size);
    Disk disk(backend, false);
    const auto tracked = make_tracked();
    backend.block();
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    backend.wait_for_blocked(1);
    auto start = std::async(std::launch::async, [&] { disk.start_tracking(tracked); });
    std::this_thread::sleep_for(20ms);
    CHECK_FALSE(is_ready(start));
    backend.unblock();
    start.get();
    write.get();
    clear_map(*tracked);
    disk.write(data.data(), {4096, 512}, false);
    CHECK(progress(*tracked).delta_bytes == 512);
    const Lsn before = progress(*tracked).last;
    disk.zero({0, 512}, true, false, false);
    CHECK((progress(*tracked).last == Lsn(before.v + 1)));
    disk.stop_tracking();
    disk.write(data.data(), {4096, 512}, false);
    CHECK((progress(*tracked).last == Lsn(before.v + 1)));
}

TEST_CASE("disk: a change that failed is sent again, whatever it failed with") {
    MemoryBackend backend(size);
    Disk disk(backend, false);
    const auto tracked = make_tracked();
    disk.start_tracking(tracked);
    clear_map(*tracked);
    SUBCASE("a write") {
        backend.fail_changes = ENOSPC;
        CHECK_THROWS_AS(disk.write(data.data(), {0, 5000}, false), Error);
    }
    SUBCASE("a trim") {
        backend.fail_changes = EIO;
        CHECK_THROWS_AS(disk.trim({0, 5000}, false), Error);
    }
    SUBCASE("a fast zero") {
        backend.fail_changes = EOPNOTSUPP;
        CHECK_THROWS_AS(disk.zero({0, 5000}, true, true, false), Error);
    }
    SUBCASE("a trim that leaves anything behind") {
        backend.set_features().trim_reads_zero = false;
        disk.trim({0, 5000}, false);
    }
    CHECK(progress(*tracked).dirty_bytes == 4096 + 1024);
    CHECK(progress(*tracked).delta_bytes == 0);
}

TEST_CASE("disk: a trim that the storage could not do is nothing to tell the destination") {
    MemoryBackend backend(size);
    Disk disk(backend, false);
    const auto tracked = make_tracked();
    disk.start_tracking(tracked);
    clear_map(*tracked);
    disk.write(data.data(), {0, 8192}, false);
    const Lsn before = progress(*tracked).last;
    backend.keeps_space = true;
    disk.trim({0, 8192}, false);
    CHECK((progress(*tracked).last == before));
    CHECK(progress(*tracked).dirty_bytes == 0);
    backend.keeps_space = false;
    disk.trim({0, 8192}, false);
    CHECK((progress(*tracked).last == Lsn(before.v + 1)));
}

TEST_CASE("disk: close ends what is held") {
    MemoryBackend backend(size);
    Disk disk(backend, true);
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    std::this_thread::sleep_for(10ms);
    disk.close();
    try {
        write.get();
        FAIL("it was done");
    } catch (const Error& error) {
        CHECK(error.sys_errno() == ESHUTDOWN);
    }
    CHECK_THROWS_AS(disk.write(data.data(), {0, 512}, false), Error);
    CHECK(backend.changes == 0);
}

TEST_CASE("disk: forwarded requests go to the owner, those that were held too") {
    MemoryBackend backend(size);
    const auto owner = std::make_shared<MemoryBackend>(size);
    Disk disk(backend, false);
    disk.hold();
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    std::this_thread::sleep_for(10ms);
    disk.forward_to(owner);
    write.get();
    CHECK(backend.changes == 0);
    CHECK(owner->changes == 1);
    std::vector<std::byte> buffer(512);
    disk.read(buffer.data(), {0, 512});
    CHECK(buffer[0] == std::byte{7});
    disk.flush();
    CHECK(owner->flushes == 1);
}

TEST_CASE("disk: taken back, what waits for the other owner is done here, and what comes") {
    MemoryBackend backend(size);
    const auto owner = std::make_shared<Unreachable>(size);
    Disk disk(backend, false);
    disk.forward_to(owner);
    auto write = std::async(std::launch::async, [&] { disk.write(data.data(), {0, 512}, false); });
    owner->asked.get_future().wait();
    disk.take_back();
    disk.flush();
    CHECK(backend.flushes == 1);
    owner->stopped.set_value();
    write.get();
    CHECK(backend.changes == 1);
    disk.write(data.data(), {0, 512}, false);
    CHECK(backend.changes == 2);
}

TEST_CASE("disk: a snapshot is told before the change") {
    MemoryBackend backend(size);
    Disk disk(backend, true);
    const BlockGeometry geometry{size, 4096};
    const auto snapshot = std::make_shared<HashSnapshot>(backend, geometry, 1);
    const Hash128 before = hash_block(backend, geometry, 0, 1);
    disk.set_snapshot(snapshot);
    disk.release();
    disk.write(data.data(), {0, 512}, false);
    CHECK(std::memcmp(&before, std::array{snapshot->hash(0)}.data(), sizeof before) == 0);
}

// Writers, zeroes and captures at once; what the frames make is what the disk holds.
TEST_CASE("disk: many threads and a capture, and nothing is lost") {
    MemoryBackend backend(size);
    Disk disk(backend, false);
    Source::Limits limits;
    limits.log_bytes = 16 * KiB; // some of the writes turn blocks dirty
    limits.frame_bytes = 8 * KiB;
    const auto tracked = make_tracked(limits);
    disk.start_tracking(tracked);
    std::atomic<unsigned> writing{4};
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&, seed] {
            std::mt19937 random(seed);
            std::vector<std::byte> buffer(9000);
            for (int i = 0; i < 1500; ++i) {
                const uint64_t offset = random() % (random() % 2 == 0 ? 9000 : size);
                const Extent where{offset, 1 + random() % std::min<uint64_t>(9000, size - offset)};
                if (random() % 4 == 0) {
                    disk.zero(where, random() % 2 == 0, false, false);
                } else {
                    std::fill(buffer.begin(), buffer.end(), static_cast<std::byte>(random()));
                    disk.write(buffer.data(), where, false);
                }
            }
            --writing;
        });
    }
    std::vector<std::byte> there(size, std::byte{0xcc});
    const auto apply = [&](Frame& frame) {
        std::vector<std::byte> joined;
        if (frame.buffer.memory != nullptr) {
            joined.assign(frame.buffer.data(), frame.buffer.data() + frame.data_length);
        }
        for (const Frame::Piece& piece : frame.pieces) {
            joined.insert(joined.end(), piece.data.get(), piece.data.get() + piece.length);
        }
        const std::byte* from = joined.data();
        for (const Op& op : frame.ops) {
            if (op.type == OpType::write) {
                std::memcpy(&there[op.where.offset], from, op.where.length);
            } else if (!is_mark(op.type)) {
                std::memset(&there[op.where.offset], 0, op.where.length);
            }
            from += has_data(op.type) ? op.where.length : 0;
        }
    };
    for (;;) {
        const bool last = writing == 0; // before the look
        std::optional<Source::Capture> capture;
        std::vector<Frame*> frames;
        {
            const std::lock_guard lock(tracked->mutex);
            if (const auto at = tracked->source.next_dirty(0, size)) {
                capture = tracked->source.begin_capture(*at, size, limits.frame_bytes);
            }
            while (Frame* const frame = tracked->source.next_frame()) {
                frames.push_back(frame);
            }
        }
        for (Frame* const frame : frames) {
            apply(*frame);
            const std::lock_guard lock(tracked->mutex);
            tracked->source.acknowledged(frame);
        }
        if (capture && !capture->parts.empty()) {
            const auto read = [&](const Source::Capture& from) {
                const auto memory = std::make_shared<std::byte[]>(8 * KiB + from.range().length);
                const FrameBuffer buffer{{memory, memory.get()}, 8 * KiB, from.range().length};
                backend.read(buffer.data(), from.range());
                return buffer;
            };
            FrameBuffer buffer = read(*capture);
            const Tracked::Range held(*tracked, capture->lock_range);
            bool again = false;
            {
                const std::lock_guard lock(tracked->mutex);
                again = !tracked->source.unchanged(*capture);
                if (again) {
                    tracked->source.refresh(*capture);
                }
            }
            if (again && !capture->parts.empty()) {
                buffer = read(*capture);
            }
            std::vector<Op> ops;
            if (!capture->parts.empty()) {
                ops = pack_ops(buffer.data(), capture->parts, 8 * KiB);
            }
            const std::lock_guard lock(tracked->mutex);
            tracked->source.commit_capture(*capture, std::move(ops), std::move(buffer), 1);
        } else if (last && frames.empty()) {
            break;
        }
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(progress(*tracked).dirty_bytes == 0);
    CHECK((there == backend.bytes()));
}
