// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/source.h"

#include <cstring>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint32_t block = 64 * KiB;

// A source as its adapters use it, in short steps.
struct Fixture {
    explicit Fixture(uint64_t blocks = 8, Source::Limits limits = {})
        : source({blocks * block, block}, 4 * KiB, limits) {
        MigrationId migration{};
        source.start(migration, {1, 1, 0});
    }

    Source source;
    uint64_t now_us = 0;
    RangeLock::Ticket held;

    void lock(Extent range) {
        held = source.locks().acquire(range);
        REQUIRE(held->granted);
    }
    void unlock() {
        std::vector<void*> granted;
        source.locks().release(held, granted);
        source.settle(++now_us);
    }

    static Bytes data(uint64_t length) {
        const auto bytes = std::make_shared<std::byte[]>(length);
        return {bytes, bytes.get()};
    }
    // A guest's write, logged if the source wants to.
    void write(Extent range) {
        lock(range);
        source.write_done(range, source.wants_data(range) ? data(range.length) : nullptr, ++now_us);
        unlock();
    }
    void zero(Extent range, OpType type = OpType::zero) {
        lock(range);
        source.zero_done(range, type, ++now_us);
        unlock();
    }
    void spoil(Extent range) {
        lock(range);
        source.spoiled(range);
        unlock();
    }

    // Commits one capture with the data of its parts.
    void commit(Source::Capture& capture) {
        lock(capture.lock_range);
        if (!source.unchanged(capture)) {
            source.refresh(capture);
        }
        std::vector<Op> ops;
        uint64_t length = 0;
        for (const Extent& part : capture.parts) {
            ops.push_back({OpType::write, part});
            length += part.length;
        }
        const auto memory = std::make_shared<std::byte[]>(8 * KiB + length);
        source.commit_capture(capture, ops, {{memory, memory.get()}, 8 * KiB, length}, ++now_us);
        unlock();
    }
    void capture_all() {
        while (const auto at = source.next_dirty(0, source.geometry().disk_size)) {
            Source::Capture capture =
                source.begin_capture(*at, source.geometry().disk_size, 256 * KiB);
            commit(capture);
        }
    }
    std::vector<Frame*> frames() {
        std::vector<Frame*> all;
        while (Frame* frame = source.next_frame()) {
            all.push_back(frame);
        }
        return all;
    }
    void acknowledge_all() {
        for (Frame* frame : frames()) {
            source.acknowledged(frame);
        }
    }
    // Everything captured and applied.
    void in_sync() {
        capture_all();
        acknowledge_all();
        REQUIRE(source.progress().in_sync);
    }
    Source::Handover hand_over() {
        source.begin_handover({});
        source.settle(++now_us);
        acknowledge_all();
        return source.handover();
    }
};

bool has_op(const Frame& frame, OpType type) {
    return std::any_of(
        frame.ops.begin(), frame.ops.end(), [&](const Op& op) { return op.type == type; });
}

} // namespace

TEST_CASE("source: new work is what a write adds to what is still to be sent") {
    Fixture disk;
    constexpr uint64_t unit = block / BlockGeometry::sub_blocks;
    CHECK(disk.source.new_work({0, 0}) == 0);
    CHECK(disk.source.new_work({block / 2, 2 * block}) == 0); // all dirty
    disk.in_sync();
    CHECK(disk.source.new_work({block / 2, 2 * block}) == 2 * block);
    CHECK(disk.source.new_work({1, 1}) == 1);
    disk.spoil({block + unit, unit}); // one sub-block of the second block is dirty
    CHECK(disk.source.new_work({block + unit, unit}) == 0);
    CHECK(disk.source.new_work({block + 2 * unit + 1, 1}) == unit);
    CHECK(disk.source.new_work({block - 10, 10 + 3 * unit}) == 10 + 2 * unit);
}

TEST_CASE("source: a dirty block takes writes without an LSN, a clean one logs them") {
    Fixture f;
    CHECK(f.source.progress().dirty_bytes == 8 * block);
    f.write({0, 512});
    CHECK((f.source.progress().last == Lsn(0)));
    f.in_sync();
    const Lsn before = f.source.progress().last;
    f.write({100, 512});
    CHECK((f.source.progress().last == Lsn(before.v + 1)));
    CHECK(f.source.progress().dirty_bytes == 0);
    CHECK(f.source.progress().delta_bytes == 512);
}

TEST_CASE("source: a write over clean and dirty blocks logs what was clean, marks what was dirty") {
    Fixture f;
    f.in_sync();
    f.spoil({2 * block, 1});
    const uint64_t sub = block / 16;
    CHECK(f.source.progress().dirty_bytes == sub);
    f.acknowledge_all();
    f.write({block, 3 * block});
    CHECK(f.source.progress().dirty_bytes == block);
    const auto frames = f.frames();
    REQUIRE(frames.size() == 1);
    CHECK((frames[0]->ops ==
           std::vector<Op>{{OpType::write, {block, block}}, {OpType::write, {3 * block, block}}}));
}

TEST_CASE("source: a capture that was written meanwhile is seen to be") {
    Fixture f;
    Source::Capture capture = f.source.begin_capture(0, 8 * block, 2 * block);
    CHECK(capture.blocks == 2);
    CHECK((capture.range() == Extent{0, 2 * block}));
    CHECK(f.source.unchanged(capture));
    SUBCASE("by a write") {
        f.write({block + 5, 10});
    }
    SUBCASE("by a zero") {
        f.zero({0, 1});
    }
    SUBCASE("by a write that failed") {
        f.spoil({2 * block - 1, 1});
    }
    CHECK_FALSE(f.source.unchanged(capture));
}

TEST_CASE("source: a capture stops at a block that is dirty in part, and takes that one alone") {
    Fixture f;
    f.in_sync();
    f.spoil({0, block});
    f.spoil({block, 100});
    f.spoil({block + 20'000, 100});
    f.spoil({2 * block, block});
    Source::Capture whole = f.source.begin_capture(0, 8 * block, MiB);
    CHECK(whole.blocks == 1);
    Source::Capture partial = f.source.begin_capture(block, 8 * block, MiB);
    CHECK(partial.blocks == 1);
    CHECK((partial.parts == std::vector<Extent>{{block, 4096}, {block + 4 * 4096, 4096}}));
    CHECK((partial.range() == Extent{block, 5 * 4096}));
    // What became dirty before the commit is in it.
    f.spoil({block + 4096, 1});
    CHECK_FALSE(f.source.unchanged(partial));
    f.source.refresh(partial);
    CHECK((partial.parts == std::vector<Extent>{{block, 2 * 4096}, {block + 4 * 4096, 4096}}));
}

TEST_CASE("source: behind the last block, cut by the end of the disk, nothing is dirty") {
    Source source({block + 100, block}, 4096, {});
    source.start({}, {1, 1, 0});
    CHECK((source.next_dirty(block, block + 100) == block));
    const Source::Capture last = source.begin_capture(block, block + 100, MiB);
    CHECK((last.lock_range == Extent{block, 100}));
    CHECK_FALSE(source.next_dirty(last.lock_range.end(), block + 100));
}

TEST_CASE("source: two links never capture the same region") {
    Source::Limits limits;
    limits.region_bytes = 2 * block;
    Fixture f(5, limits);
    const auto first = f.source.claim_region(), second = f.source.claim_region(),
               third = f.source.claim_region();
    REQUIRE((first && second && third));
    CHECK((*first == Extent{0, 2 * block}));
    CHECK((*second == Extent{2 * block, 2 * block}));
    CHECK((*third == Extent{4 * block, block}));
    CHECK_FALSE(f.source.claim_region());
    f.source.release_region(*second);
    CHECK((f.source.claim_region() == second));
}

TEST_CASE("source: the after rule") {
    Source::Limits limits;
    limits.frame_ops = 1;
    Fixture f(8, limits);
    Source::Capture rest = f.source.begin_capture(4 * block, 8 * block, 4 * block);
    Source::Capture start = f.source.begin_capture(0, 4 * block, 4 * block);
    f.commit(start); // LSN 1; blocks 4 to 7 stay dirty: not consistent
    f.write({0, 512});
    f.write({block, 512});
    f.write({256, 512});
    const auto frames = f.frames();
    REQUIRE(frames.size() == 4);
    CHECK((frames[0]->after == Lsn(0)));
    CHECK((frames[1]->after == Lsn(1))); // in what was captured
    CHECK((frames[2]->after == Lsn(1)));
    CHECK((frames[3]->after == Lsn(2))); // overlaps the write

    SUBCASE("acknowledged is what the watermark has passed, not a single reply") {
        f.source.acknowledged(frames[1]);
        CHECK((f.source.applied() == Lsn(0)));
        f.write({0, 512});
        CHECK((f.frames().at(0)->after == Lsn(4)));
        f.source.acknowledged(frames[3]);
        f.write({block, 512});
        CHECK((f.frames().at(0)->after == Lsn(3)));
        f.source.acknowledged(frames[0]);
        CHECK((f.source.applied() == Lsn(2)));
        f.write({2 * block, 512});
        CHECK((f.frames().at(0)->after == Lsn(0))); // LSN 1 is below the watermark
    }
    SUBCASE("a mark comes after all that is before it; so does everything once consistent") {
        f.commit(rest); // and with that, the consistent mark
        const auto marks = f.frames();
        REQUIRE(marks.size() == 2);
        CHECK(has_op(*marks[1], OpType::consistent));
        CHECK((marks[1]->after == Lsn(marks[1]->first.v - 1)));
        f.write({3 * block, 512});
        const auto later = f.frames();
        CHECK((later.at(0)->after == Lsn(later[0]->first.v - 1)));
    }
}

TEST_CASE("source: strict order lasts up to the inconsistent mark, and nothing later passes it") {
    Source::Limits limits;
    limits.frame_ops = 1;
    Fixture f(8, limits);
    f.in_sync();
    const uint64_t last = f.source.progress().last.v;
    f.write({0, 512});
    f.write({block, 512});
    f.spoil({2 * block, 512});
    f.write({3 * block, 512});
    const auto frames = f.frames();
    REQUIRE(frames.size() == 4);
    CHECK((frames[0]->after == Lsn(last)));
    CHECK((frames[1]->after == Lsn(last + 1)));
    CHECK((frames[2]->ops == std::vector<Op>{{OpType::inconsistent, {}}}));
    CHECK((frames[2]->after == Lsn(last + 2)));
    CHECK((frames[3]->after == Lsn(last + 3))); // not before the mark
    CHECK_FALSE(f.source.progress().in_sync);
    f.capture_all();
    CHECK_FALSE(f.source.progress().in_sync); // applied has not come so far
    for (Frame* frame : frames) {
        f.source.acknowledged(frame);
    }
    f.acknowledge_all();
    CHECK(f.source.progress().in_sync);
}

TEST_CASE("source: over its budget nothing is logged, the blocks turn dirty, also for zeroes") {
    Source::Limits limits;
    limits.log_bytes = 64 * KiB;
    Fixture f(8, limits);
    f.in_sync();
    SUBCASE("writes") {
        for (uint64_t i = 0; i < 100; ++i) {
            f.write({i * 4096 % (8 * block), 4096});
        }
        CHECK(f.source.progress().dirty_bytes > 0);
        CHECK_FALSE(f.source.wants_data({0, 4096}));
    }
    SUBCASE("zeroes, which have no data") {
        for (uint64_t i = 0; i < 1000; ++i) {
            f.zero({i * 512 % (8 * block), 512}, i % 2 == 0 ? OpType::zero : OpType::trim);
        }
        CHECK(f.source.progress().dirty_bytes > 0);
    }
    CHECK(f.source.progress().lag_bytes <= limits.log_bytes);
    CHECK(f.source.queued_ops() < 300);
    CHECK_FALSE(f.source.progress().in_sync);
    f.acknowledge_all();
    CHECK(f.source.progress().lag_bytes == 0);
    f.in_sync();
}

TEST_CASE("source: flushes are marks once consistent, and two in a row are one") {
    Fixture f;
    f.source.flush_done(1);
    CHECK((f.source.progress().last == Lsn(0)));
    f.in_sync();
    const uint64_t last = f.source.progress().last.v;
    f.source.flush_done(2);
    f.source.flush_done(3);
    CHECK(f.source.progress().last.v == last + 1);
    f.write({0, 512});
    f.source.flush_done(4);
    CHECK(f.source.progress().last.v == last + 3);
}

TEST_CASE("source: lag is told from the oldest operation") {
    Fixture f;
    f.in_sync();
    CHECK(f.source.progress().oldest_us == 0);
    f.now_us = 1000;
    f.write({0, 512});
    f.now_us = 2000;
    f.write({block, 512});
    CHECK(f.source.progress().oldest_us == 1001);
    const auto frames = f.frames();
    CHECK(f.source.progress().oldest_us == 1001);
    f.source.acknowledged(frames[0]);
    CHECK(f.source.progress().oldest_us == 0);
    // A mark that no time was told for is as old as the last event, not from the start of time.
    f.spoil({0, 1});
    CHECK(f.source.progress().oldest_us >= 2000);
}

TEST_CASE("source: the handover comes when nothing is dirty and no write is under way") {
    Fixture f;
    f.source.begin_handover({});
    f.source.settle(1);
    CHECK((f.source.handover() == Source::Handover::draining));
    const auto writer = f.source.locks().acquire({0, 512});
    const auto at = f.source.next_dirty(0, 8 * block);
    REQUIRE(at);
    Source::Capture capture = f.source.begin_capture(block, 8 * block, 7 * block);
    f.commit(capture);
    f.source.write_done({0, 512}, nullptr, 2);
    std::vector<void*> granted;
    f.source.locks().release(writer, granted);
    f.source.settle(3);
    CHECK((f.source.handover() == Source::Handover::draining)); // block 0 is dirty
    f.capture_all();
    CHECK((f.source.handover() == Source::Handover::queued));
    const auto frames = f.frames();
    CHECK(has_op(*frames.back(), OpType::handover));
    CHECK(frames.back()->durable);
    CHECK((f.source.handover_lsn() == f.source.progress().last));
    for (auto it = frames.rbegin(); it != frames.rend(); ++it) {
        CHECK(
            (f.source.handover() == Source::Handover::queued)); // not before the watermark is there
        f.source.acknowledged(*it);
    }
    CHECK((f.source.handover() == Source::Handover::durable));
    CHECK((f.source.progress().durable == f.source.handover_lsn()));
}

TEST_CASE("source: whatever is written after the handover voids it, before the write is logged") {
    Fixture f;
    f.in_sync();
    REQUIRE((f.hand_over() == Source::Handover::durable));
    SUBCASE("a write") {
        f.write({0, 512});
    }
    SUBCASE("a zero") {
        f.zero({0, 512});
    }
    SUBCASE("a write that failed") {
        f.spoil({0, 512});
    }
    CHECK((f.source.handover() == Source::Handover::voided));
    const auto frames = f.frames();
    CHECK((frames.at(0)->ops.at(0).type == OpType::void_));
}

TEST_CASE("source: a handover that is taken back, and another one") {
    Fixture f;
    f.in_sync();
    REQUIRE((f.hand_over() == Source::Handover::durable));
    f.source.cancel_handover();
    CHECK((f.source.handover() == Source::Handover::none));
    CHECK(has_op(*f.frames().at(0), OpType::void_));
    f.write({0, 512});
    CHECK((f.hand_over() == Source::Handover::queued)); // the void frame was not answered
    f.source.cancel_handover();
    f.source.cancel_handover(); // nothing left to take back
}

TEST_CASE("source: a new session to the same process sends everything above applied again") {
    Source::Limits limits;
    limits.frame_ops = 1;
    Fixture f(8, limits);
    f.in_sync();
    const uint64_t base = f.source.progress().last.v;
    for (uint64_t i = 0; i < 4; ++i) {
        f.write({i * block, 512});
    }
    const auto frames = f.frames();
    f.source.acknowledged(frames[2]); // out of order
    f.write({5 * block, 512});        // not in a frame yet
    CHECK((f.source.resume(Lsn(base + 1), Lsn(0), true) == Lsn(base + 1)));
    CHECK((f.source.applied() == Lsn(base + 1)));
    const auto again = f.frames();
    REQUIRE(again.size() == 4);
    for (size_t i = 0; i < again.size(); ++i) {
        CHECK((again[i]->first == Lsn(base + 2 + i)));
        CHECK_FALSE(again[i]->acked);
    }
    CHECK(f.source.progress().dirty_bytes == 0);
}

TEST_CASE("source: another process of the destination has what was durable, no more") {
    Fixture f;
    f.capture_all();
    const auto frames = f.frames();
    REQUIRE(frames.size() == 3);        // two captures of four blocks, and the mark
    const Lsn first = frames[0]->first; // of the first capture; acknowledged frames are gone
    for (Frame* frame : frames) {
        f.source.acknowledged(frame);
    }
    f.source.made_durable(first);
    const Lsn applied = f.source.applied();
    CHECK((f.source.resume(Lsn(0), Lsn(0), false) == applied));
    CHECK(f.source.progress().dirty_bytes == 4 * block);
    CHECK((f.source.next_dirty(0, 8 * block) == 4 * block));
    CHECK_FALSE(f.source.progress().in_sync);
    f.in_sync();
    // What was made durable since is not asked for again.
    f.source.made_durable(f.source.applied());
    f.source.resume(Lsn(0), Lsn(0), false);
    CHECK(f.source.progress().dirty_bytes == 0);
    CHECK_FALSE(f.source.progress().in_sync); // but it has to be told that it is consistent
    f.acknowledge_all();
    CHECK(f.source.progress().in_sync);
}

TEST_CASE("source: a handover on its way to a process that died is not taken at its word") {
    Fixture f;
    f.in_sync();
    f.write({0, 512});
    f.acknowledge_all(); // applied, not durable
    f.source.begin_handover({});
    f.source.settle(++f.now_us);
    SUBCASE("in a frame") {
        f.frames();
    }
    SUBCASE("in the queue") {}
    CHECK((f.source.handover() == Source::Handover::queued));
    f.source.resume(Lsn(0), Lsn(0), false);
    CHECK((f.source.handover() == Source::Handover::draining));
    for (Frame* frame : f.frames()) {
        CHECK_FALSE(has_op(*frame, OpType::handover));
        CHECK_FALSE(has_op(*frame, OpType::consistent));
        f.source.acknowledged(frame);
    }
    CHECK((f.source.handover() == Source::Handover::draining));
    f.capture_all(); // what was lost
    CHECK((f.source.handover() == Source::Handover::queued));
    f.acknowledge_all();
    CHECK((f.source.handover() == Source::Handover::durable));
}

TEST_CASE("source: a handover that was applied but is not durable is sent again") {
    Fixture f;
    f.in_sync();
    f.source.begin_handover({});
    f.source.settle(++f.now_us);
    f.frames();
    const Lsn handover = f.source.handover_lsn();
    SUBCASE("not durable") {
        f.source.resume(handover, Lsn(handover.v - 1), true);
        CHECK((f.source.handover() == Source::Handover::queued));
        f.acknowledge_all();
    }
    SUBCASE("durable") {
        f.source.resume(handover, handover, true);
    }
    CHECK((f.source.handover() == Source::Handover::durable));
}

TEST_CASE("source: what was applied after a handover that was taken back is not sent again") {
    Fixture f;
    f.in_sync();
    f.source.begin_handover({});
    f.source.settle(++f.now_us);
    const Lsn before(f.source.handover_lsn().v - 1);
    f.write({0, 512}); // voids it
    f.frames();
    const Lsn last = f.source.progress().last;
    CHECK((f.source.resume(last, before, true) == last));
    CHECK(f.frames().empty());
    // Nobody said that it is on disk.
    CHECK((f.source.progress().durable <= before));
}

TEST_CASE("source: a durable handover survives a restart of the destination") {
    Fixture f;
    f.in_sync();
    REQUIRE((f.hand_over() == Source::Handover::durable));
    f.source.resume(Lsn(0), Lsn(0), false);
    CHECK((f.source.handover() == Source::Handover::durable));
    CHECK(f.source.progress().dirty_bytes == 0);
    CHECK(f.frames().empty());
}

TEST_CASE("source: a frame of a plain server has no two operations that depend on each other") {
    Source::Limits limits;
    limits.prefix_order = false;
    Fixture f(8, limits);
    f.in_sync();
    f.write({0, 512});
    f.write({block, 512});
    f.write({256, 512}); // overlaps the first
    f.zero({block, 100});
    f.source.begin_handover({});
    f.source.settle(++f.now_us);
    const auto frames = f.frames();
    REQUIRE(frames.size() == 3);
    CHECK(frames[0]->ops.size() == 2);
    CHECK(frames[1]->ops.size() == 2);
    CHECK((frames[1]->after == Lsn(frames[1]->first.v - 1))); // both of the frame before it
    CHECK(frames[2]->ops.size() == 1);
    CHECK(frames[2]->durable);
}

TEST_CASE("source: what cannot be in one frame is not put into one") {
    Source::Limits limits;
    limits.frame_bytes = 8 * KiB;
    limits.frame_ops = 4;
    Fixture f(64, limits);
    f.in_sync();
    for (uint64_t i = 0; i < 6; ++i) {
        f.write({i * block, 512});
    }
    f.write({10 * block, 8 * KiB});
    f.write({12 * block, 2 * MiB}); // one operation may be larger than a frame usually is
    auto frames = f.frames();
    REQUIRE(frames.size() == 4);
    CHECK(frames[0]->ops.size() == 4);
    CHECK(frames[1]->ops.size() == 2);
    CHECK(frames[2]->data_length == 8 * KiB);
    CHECK(frames[3]->data_length == 2 * MiB);
    CHECK((frames[3]->data_length <= max_frame_data));
    CHECK_FALSE(f.source.wants_data({0, max_frame_data + 1}));
}

// --- what the destination has already

namespace {

struct Comparing : Fixture {
    explicit Comparing(uint64_t region_blocks = 8)
        : Fixture(8, {.region_bytes = region_blocks * block, .compare_first = true}) {}

    // Blocks that are the same there, as it said when it was asked.
    uint64_t same(uint64_t first, uint64_t blocks, const Source::Question& asked) {
        return same(source.begin_compare(first, blocks), asked);
    }
    uint64_t same(const Source::Capture& read, const Source::Question& asked) {
        lock(read.lock_range);
        const uint64_t count = source.commit_same(read, asked);
        unlock();
        return count;
    }
    Source::Question ask(uint64_t from = 0) { return source.next_question(from, 8); }
};

} // namespace

TEST_CASE("source: what is the same there is clean, and not sent") {
    Comparing f;
    const Source::Question asked = f.ask();
    CHECK(asked.first_block == 0);
    CHECK(asked.blocks == 8);
    CHECK_FALSE(f.source.claim_region()); // not before it was compared
    CHECK(f.same(0, 3, asked) == 3);
    CHECK(f.same(4, 4, asked) == 4);
    CHECK(f.source.progress().same_bytes == 7 * block);
    CHECK(f.source.progress().dirty_bytes == block);
    CHECK(f.frames().empty());
    CHECK(f.ask().first_block == 3);
    f.source.compared_to(8 * block);
    CHECK(f.source.claim_region());
    f.in_sync();
    CHECK(f.source.progress().captured_bytes == block);
    CHECK(f.ask().blocks == 0);
    f.write({0, 512}); // logged like on any clean block
    CHECK(f.source.progress().delta_bytes == 512);
}

TEST_CASE("source: an answer does not count for a block that was written since it was read here") {
    Comparing f;
    const Source::Question asked = f.ask();
    const Source::Capture read = f.source.begin_compare(0, 3);
    SUBCASE("by a write") {
        f.write({block + 5, 10});
    }
    SUBCASE("by a zero") {
        f.zero({block, 1});
    }
    SUBCASE("by a write that failed") {
        f.spoil({2 * block - 1, 1});
    }
    CHECK(f.same(read, asked) == 2);
    CHECK(f.source.progress().dirty_bytes == 6 * block);
    CHECK(f.same(1, 1, asked) == 1); // read again
}

TEST_CASE("source: an answer does not count for a block for which something was queued") {
    Comparing f;
    Source::Question asked;
    SUBCASE("since it was asked") {
        asked = f.ask();
    }
    Source::Capture capture = f.source.begin_capture(0, 2 * block, 2 * block);
    f.commit(capture);
    SUBCASE("before it was asked") {
        asked = {0, 8, f.source.stream().session};
    }
    SUBCASE("as a hole") {
        asked = f.ask();
        f.lock({2 * block, block});
        f.source.commit_hole({2 * block, block}, ++f.now_us);
        f.unlock();
        f.spoil({2 * block, block});
        CHECK(f.same(2, 1, asked) == 0);
        return;
    }
    f.spoil({0, 2 * block}); // dirty as a whole, and as it was when it was asked
    CHECK(f.same(0, 3, asked) == 1);
    CHECK(f.source.progress().dirty_bytes == 7 * block);
    CHECK(f.ask(0).first_block == 3);
}

TEST_CASE("source: an answer does not count in another session, nor for what was not asked") {
    Comparing f;
    const Source::Question asked = f.source.next_question(2, 2);
    CHECK(f.same(0, 8, asked) == 2);
    const Source::Question before = f.ask(4);
    f.source.begin_session(1);
    CHECK(f.same(4, 4, before) == 0);
    f.source.resume(Lsn(0), Lsn(0), true);
    CHECK(f.same(4, 4, before) == 0);
    CHECK(f.same(4, 4, f.ask(4)) == 4);
}

TEST_CASE("source: what was the same is dirty again where the destination may have lost it") {
    Comparing f;
    CHECK(f.same(0, 2, f.ask()) == 2);
    f.source.compared_to(8 * block);
    SUBCASE("nothing was durable") {
        f.source.begin_session(1);
        f.source.resume(Lsn(0), Lsn(0), false);
        CHECK(f.source.progress().dirty_bytes == 8 * block);
        CHECK(f.ask().first_block == 2); // not asked for again
    }
    SUBCASE("a flush was asked for before") {
        f.source.made_durable(f.source.applied());
        f.source.begin_session(1);
        f.source.resume(Lsn(0), Lsn(0), false);
        CHECK(f.source.progress().dirty_bytes == 8 * block);
    }
    SUBCASE("the same instance") {
        f.source.begin_session(1);
        f.source.resume(Lsn(0), Lsn(0), true);
        CHECK(f.source.progress().dirty_bytes == 6 * block);
    }
    SUBCASE("a flush was asked for after something later was applied") {
        f.capture_all();
        CHECK(f.same(2, 6, f.ask()) == 0);
        f.acknowledge_all();
        f.source.made_durable(f.source.applied());
        const Lsn durable = f.source.applied();
        f.source.begin_session(1);
        f.source.resume(durable, durable, false);
        CHECK(f.source.progress().dirty_bytes == 0);
    }
}

TEST_CASE("source: regions are captured as far as they were compared") {
    Comparing f(2);
    f.source.compared_to(3 * block);
    const auto first = f.source.claim_region();
    REQUIRE(first);
    CHECK((*first == Extent{0, 2 * block}));
    CHECK_FALSE(f.source.claim_region());
    f.source.compared_to(4 * block);
    const auto second = f.source.claim_region();
    REQUIRE(second);
    CHECK((*second == Extent{2 * block, 2 * block}));
    f.source.compared_to(8 * block);
    CHECK(f.source.claim_region());
    CHECK(f.source.claim_region());
    CHECK_FALSE(f.source.claim_region());
}

TEST_CASE("source: a disk that is there as a whole is handed over") {
    Comparing f;
    CHECK(f.same(0, 8, f.ask()) == 8);
    f.source.compared_to(8 * block);
    CHECK((f.hand_over() == Source::Handover::durable));
    CHECK(f.source.progress().captured_bytes == 0);
    f.source.begin_session(1);
    f.source.resume(Lsn(0), Lsn(0), false);
    CHECK(f.source.progress().dirty_bytes == 0);
}
