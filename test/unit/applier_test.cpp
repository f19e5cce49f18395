// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/applier.h"

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr uint64_t generation = 4;

MigrationId migration() {
    MigrationId id{};
    id.fill(std::byte{7});
    return id;
}

FrameHeader frame(uint64_t session, uint64_t first, uint64_t count, uint64_t after) {
    FrameHeader header;
    header.migration = migration();
    header.stream = {generation, 1, session};
    header.first = Lsn(first);
    header.next = Lsn(first + count);
    header.after = Lsn(after);
    return header;
}

FrameHeader open_frame(uint64_t session, std::optional<uint64_t> base = std::nullopt) {
    FrameHeader header = frame(session, 0, 0, 0);
    header.open = true;
    if (base) {
        header.base = Lsn(*base);
    }
    return header;
}

Applier opened(uint64_t base) {
    Applier applier(migration(), generation, {});
    REQUIRE(applier.open(open_frame(1)).newer);
    REQUIRE(applier.open(open_frame(1, base)).ok);
    return applier;
}

Applier::Admission admit(const Applier& applier, const FrameHeader& header) {
    std::string why;
    const Applier::Admission admission = applier.admit(header, &why);
    CHECK((admission == Applier::Admission::refused) == !why.empty());
    return admission;
}

constexpr auto apply = Applier::Admission::apply;
constexpr auto wait = Applier::Admission::wait;
constexpr auto refused = Applier::Admission::refused;

void run(Applier& applier, const FrameHeader& header) {
    REQUIRE((admit(applier, header) == apply));
    applier.started(header);
    applier.finished(header);
}

} // namespace

TEST_CASE("applier: the watermark is contiguous, whatever the order") {
    Applier applier = opened(10);
    CHECK((applier.applied() == Lsn(10)));
    run(applier, frame(1, 13, 2, 0));
    CHECK((applier.applied() == Lsn(10)));
    run(applier, frame(1, 16, 1, 0));
    run(applier, frame(1, 11, 2, 0));
    CHECK((applier.applied() == Lsn(14)));
    run(applier, frame(1, 15, 1, 0));
    CHECK((applier.applied() == Lsn(16)));
}

TEST_CASE("applier: a frame waits for the watermark that it comes after") {
    Applier applier = opened(0);
    CHECK((admit(applier, frame(1, 3, 1, 2)) == wait));
    run(applier, frame(1, 2, 1, 0)); // ahead of the watermark: does not count yet
    CHECK((admit(applier, frame(1, 3, 1, 2)) == wait));
    run(applier, frame(1, 1, 1, 0));
    CHECK((admit(applier, frame(1, 3, 1, 2)) == apply));
}

TEST_CASE("applier: a frame being applied does not move the watermark") {
    Applier applier = opened(0);
    const FrameHeader first = frame(1, 1, 1, 0);
    applier.started(first);
    CHECK((admit(applier, frame(1, 2, 1, 1)) == wait));
    CHECK(applier.anything_applying());
    applier.finished(first);
    CHECK_FALSE(applier.anything_applying());
    CHECK((admit(applier, frame(1, 2, 1, 1)) == apply));
}

TEST_CASE("applier: what was applied is refused the second time") {
    Applier applier = opened(10);
    run(applier, frame(1, 11, 2, 0));
    run(applier, frame(1, 20, 2, 0));
    CHECK((admit(applier, frame(1, 11, 2, 0)) == refused));
    CHECK((admit(applier, frame(1, 20, 2, 0)) == refused));
    CHECK((admit(applier, frame(1, 10, 1, 0)) == refused));
}

TEST_CASE("applier: frames of another migration, generation, or an unopened session are refused") {
    Applier applier(migration(), generation, {});
    CHECK((admit(applier, frame(0, 1, 1, 0)) == refused)); // nothing was opened
    REQUIRE(applier.open(open_frame(1)).ok);
    CHECK((admit(applier, frame(1, 1, 1, 0)) == refused)); // no base yet
    REQUIRE(applier.open(open_frame(1, 0)).ok);
    CHECK((admit(applier, frame(2, 1, 1, 0)) == refused));
    FrameHeader other = frame(1, 1, 1, 0);
    other.migration[0] = std::byte{8};
    CHECK((admit(applier, other) == refused));
    FrameHeader open_other = open_frame(2);
    open_other.migration[0] = std::byte{8};
    CHECK_FALSE(applier.open(open_other).ok);
    open_other = open_frame(2);
    open_other.stream.generation = generation + 1;
    CHECK_FALSE(applier.open(open_other).ok);
    CHECK((admit(applier, frame(1, 1, 1, 0)) == apply)); // none of that disturbed the session
}

TEST_CASE("applier: a new session refuses the frames of the one before") {
    Applier applier = opened(0);
    run(applier, frame(1, 1, 1, 0));
    run(applier, frame(1, 5, 1, 0)); // ahead
    const Applier::Opened second = applier.open(open_frame(2));
    CHECK(second.ok);
    CHECK(second.newer);
    CHECK_FALSE(applier.open(open_frame(2)).newer); // another connection joins
    CHECK((admit(applier, frame(1, 2, 1, 0)) == refused));
    CHECK((applier.applied() == Lsn(1)));
    REQUIRE(applier.open(open_frame(2, 1)).ok);
    // What was applied ahead is forgotten: it is sent again.
    run(applier, frame(2, 5, 1, 0));
    run(applier, frame(2, 2, 3, 0));
    CHECK((applier.applied() == Lsn(5)));
    CHECK_FALSE(applier.open(open_frame(1)).ok);
    CHECK_FALSE(applier.open(open_frame(1, 0)).ok);
    CHECK_FALSE(applier.open(open_frame(2, 5)).ok); // a second base
}

TEST_CASE("applier: a worker of an older session is waited for, and does not count") {
    Applier applier = opened(0);
    const FrameHeader slow = frame(1, 1, 1, 0);
    applier.started(slow);
    REQUIRE(applier.open(open_frame(2)).ok);
    CHECK(applier.older_applying());
    CHECK_FALSE(applier.open(open_frame(2, 0)).ok); // the base comes after the state
    applier.finished(slow);
    CHECK_FALSE(applier.older_applying());
    CHECK((applier.applied() == Lsn(0)));
    REQUIRE(applier.open(open_frame(2, 0)).ok);
    run(applier, frame(2, 1, 1, 0));
    CHECK((applier.applied() == Lsn(1)));
}

TEST_CASE("applier: after a failure nothing of the session is taken, the next one goes on") {
    Applier applier = opened(0);
    const FrameHeader bad = frame(1, 1, 1, 0);
    applier.started(bad);
    applier.failed(bad);
    CHECK((admit(applier, frame(1, 2, 1, 0)) == refused));
    CHECK_FALSE(applier.anything_applying());
    REQUIRE(applier.open(open_frame(2)).ok);
    REQUIRE(applier.open(open_frame(2, 0)).ok);
    run(applier, frame(2, 1, 1, 0));
    // The late failure of an older session's worker is no failure of this one.
    const FrameHeader old = frame(1, 1, 1, 0);
    applier.started(old);
    applier.failed(old);
    CHECK((admit(applier, frame(2, 2, 1, 0)) == apply));
}

TEST_CASE("applier: a smaller triple than any seen before is refused, also after a restart") {
    Applier applier(migration(), generation, {generation, 3, 9});
    CHECK_FALSE(applier.open(open_frame(10)).ok); // stream counter 1
    FrameHeader open = open_frame(8);
    open.stream.counter = 3;
    CHECK_FALSE(applier.open(open).ok);
    open.stream.session = 10;
    CHECK(applier.open(open).newer);
    open.stream = {generation, 4, 1};
    CHECK(applier.open(open).newer);
}

TEST_CASE("applier: a lower base takes durable with it") {
    Applier applier = opened(0);
    run(applier, frame(1, 1, 8, 0));
    applier.made_durable(Lsn(8));
    applier.made_durable(Lsn(3));
    CHECK((applier.durable() == Lsn(8)));
    REQUIRE(applier.open(open_frame(2)).ok);
    REQUIRE(applier.open(open_frame(2, 6)).ok);
    CHECK((applier.applied() == Lsn(6)));
    CHECK((applier.durable() == Lsn(6)));
}

TEST_CASE("applier: a source that leaves a frame out for ever does not take memory for ever") {
    Applier applier = opened(0);
    uint64_t first = 3;
    for (; admit(applier, frame(1, first, 1, 0)) == apply; first += 2) {
        REQUIRE(first < 4 * Applier::most_ahead);
        applier.started(frame(1, first, 1, 0));
        applier.finished(frame(1, first, 1, 0));
    }
    CHECK(first == 2 * Applier::most_ahead + 3);
    CHECK(admit(applier, frame(1, first, 1, 0)) == wait);
    // What is missing comes, and then there is room again.
    run(applier, frame(1, 1, 2, 0));
    CHECK((applier.applied() == Lsn(3)));
    run(applier, frame(1, first, 1, 0));
}
