// SPDX-License-Identifier: GPL-2.0-or-later
// What each step asks for and what it says; ownership_model_test.cpp has the orders of events.
#include "common/secrets.h"
#include "nbd-proxy/core/ownership.h"

#include <limits>

#include <doctest/doctest.h>

using namespace drover;

namespace {

const std::string migration(32, 'a');
const std::string later(32, 'b');
const std::string uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";
const std::string refusal = "bb01";

Record ok(const Step& step) {
    const Refusal* const no = std::get_if<Refusal>(&step);
    INFO("refused: ", no != nullptr ? no->text : "");
    REQUIRE(no == nullptr);
    return std::get<Record>(step);
}
Refusal no(const Step& step) {
    REQUIRE(std::holds_alternative<Refusal>(step));
    const Refusal refused = std::get<Refusal>(step);
    CHECK(!refused.text.empty());
    return refused;
}

FenceRequest fence_with(const std::string& quiesce_id, const std::string& token = "") {
    return {quiesce_id, token_hash(refusal), token, std::nullopt};
}
Record replicating() {
    return ok(begin_attempt(first_record(uuid), migration, 2));
}
Record quiesced() {
    return ok(handover_durable(ok(quiesce(replicating(), "q1", {"aa01", ""})), "q1", Lsn(10)));
}
Record fenced() {
    return ok(fence(quiesced(), fence_with("q1")));
}
Record receiving() {
    return ok(begin_replica(Record(), {migration, 2, uuid, refusal}));
}
Record handed_over() {
    return ok(receive_handover(receiving(), migration, 2, Lsn(10), token_hash("aa01")));
}
Record promoted() {
    return ok(promote(handed_over(), migration, "aa01"));
}

} // namespace

TEST_CASE("names of roles and stages go there and back") {
    for (int i = 0; i < 5; ++i) {
        CHECK((parse_role(to_string(Role(i))) == Role(i)));
    }
    for (int i = 0; i < 12; ++i) {
        CHECK((parse_stage(to_string(Stage(i))) == Stage(i)));
    }
    CHECK(to_string(Role::owner_incomplete) == "owner-incomplete");
    CHECK(!parse_role("Owner"));
    CHECK(!parse_stage(""));
}

TEST_CASE("an attempt burns its generation, also when it fails") {
    Record record = replicating();
    CHECK(record.generation == 2);
    CHECK(record.stream_counter == 1);
    record = ok(cancel(record));
    CHECK((record.role == Role::owner));
    CHECK((no(begin_attempt(record, later, 2)).kind == ErrorKind::refused));
    CHECK((no(begin_attempt(record, later, 1)).kind == ErrorKind::refused));
    CHECK((no(begin_attempt(record, migration, 3)).kind == ErrorKind::refused));
    CHECK((no(begin_attempt(record, "short", 3)).kind == ErrorKind::usage));
    CHECK(ok(begin_attempt(record, later, 3)).stream_counter == 2);
}

TEST_CASE("the same attempt may start another stream, not after its quiesce") {
    CHECK(ok(begin_attempt(replicating(), migration, 2)).stream_counter == 2);
    no(begin_attempt(quiesced(), migration, 2));
    no(begin_attempt(quiesced(), later, 3));
    CHECK((ok(begin_attempt(at_start(quiesced()), migration, 2)).stage == Stage::replicating));
}

TEST_CASE("a quiesce that is over can't be fenced") {
    const Record first = quiesced();
    Record record = ok(void_handover(first));
    CHECK((record.stage == Stage::voided));
    CHECK(no(fence(record, fence_with("q1"))).text.find("quiesce again") != std::string::npos);
    no(handover_durable(record, "q1", Lsn(10)));
    no(quiesce(record, "q1", {"aa02", ""}));
    record = ok(quiesce(record, "q2", {"aa02", ""}));
    no(fence(record, fence_with("q2"))); // not durable yet
    no(handover_durable(record, "q1", Lsn(10)));
    record = ok(handover_durable(record, "q2", Lsn(20)));
    CHECK((no(fence(record, fence_with("q1"))).kind == ErrorKind::refused));
    record = ok(fence(record, fence_with("q2")));
    CHECK(record.token == "aa02");
    CHECK(record.handover == Lsn(20));
}

TEST_CASE("a quiesce needs a token or the first disk's hash") {
    no(quiesce(replicating(), "q1", {"", ""}));
    no(quiesce(replicating(), "q1", {"", "abcd"}));
    no(quiesce(replicating(), "q1", {"not hexadecimal", ""}));
    no(quiesce(replicating(), "", {"aa01", ""}));
    no(quiesce(first_record(uuid), "q1", {"aa01", ""}));
}

TEST_CASE("fence and cancel exclude each other") {
    no(cancel(fenced()));
    no(cancel(fenced(), "q1"));
    const Record cancelled = ok(cancel(quiesced(), "q1"));
    no(fence(cancelled, fence_with("q1")));
    CHECK(ok(cancel(cancelled, "q1")) == cancelled);
    no(cancel(quiesced(), "q0"));
    CHECK(cancelled.token == "");
    CHECK(ok(cancel(first_record(uuid))) == first_record(uuid));
}

TEST_CASE("a fence that is asked for twice shows the same token") {
    CHECK(ok(fence(fenced(), fence_with("q1"))) == fenced());
    no(fence(fenced(), fence_with("q2")));
    no(fence(quiesced(), {"q1", "not a hash", "", std::nullopt}));
}

TEST_CASE("a further disk is fenced with the first one's token only") {
    const std::string hash = quiesced().token_hash;
    Record further = ok(quiesce(replicating(), "f1", {"", hash}));
    CHECK(further.token_hash == hash);
    further = ok(handover_durable(further, "f1", Lsn(3)));
    no(fence(further, fence_with("f1")));
    no(fence(further, fence_with("f1", "aa02")));
    no(fence(further, fence_with("f1", "aa")));
    CHECK(ok(fence(further, fence_with("f1", fenced().token))).token == "aa01");
}

TEST_CASE("only the destination's refusal unfences, as often as it is asked") {
    no(unfence(fenced(), "bb02"));
    no(unfence(fenced(), ""));
    no(unfence(quiesced(), refusal));
    no(unfence(first_record(uuid), refusal));
    const Record back = ok(unfence(fenced(), refusal));
    CHECK((back.role == Role::owner));
    CHECK(back.token == "");
    CHECK(ok(unfence(back, refusal)) == back);
    CHECK((ok(begin_attempt(back, later, 3)).stage == Stage::replicating));
    // Told by mistake that it runs there: the refusal is still the proof that it does not.
    CHECK((ok(unfence(ok(finish(fenced(), migration)), refusal)).role == Role::owner));
}

TEST_CASE("a fence for a plain NBD server is never taken back") {
    const Record record = ok(fence(quiesced(), {"q1", "", "", std::nullopt}));
    const Refusal refused = no(unfence(record, refusal));
    CHECK((refused.kind == ErrorKind::refused));
    CHECK(refused.text.find("plain NBD server") != std::string::npos);
}

TEST_CASE("a forwarding source, and its way back") {
    const ForwardTarget target{"host", 10809, "user", "/run/key", "", ""};
    Record source = ok(fence(quiesced(), {"q1", token_hash(refusal), "", target}));
    CHECK((source.role == Role::forwarding));
    CHECK(source.forward == target);
    CHECK(!may_write(source));
    CHECK((ok(unfence(source, refusal)).role == Role::owner));
    CHECK(!ok(unfence(source, refusal)).forward);

    // It must be known that the destination was promoted before this becomes its replica.
    no(begin_replica(source, {later, 3, uuid, "bb03"}));
    source = ok(finish(source, migration));
    source = ok(begin_replica(source, {later, 3, uuid, "bb03"}));
    CHECK((source.role == Role::replica));
    CHECK(source.forward == target); // its client is still served from there
    const Record failed = ok(refuse(source, later, ""));
    CHECK((failed.role == Role::forwarding));
    CHECK(
        (ok(begin_replica(failed, {std::string(32, 'c'), 4, uuid, "bb04"})).role == Role::replica));
    source = ok(receive_handover(source, later, 3, Lsn(5), token_hash("aa03")));
    source = ok(promote(source, later, "aa03"));
    CHECK((source.role == Role::owner));
    CHECK(!source.forward);
}

TEST_CASE("what becomes a replica, and what does not") {
    CHECK(receiving().refusal_hash == token_hash(refusal));
    CHECK(ok(begin_replica(receiving(), {migration, 2, uuid, "other"})) == receiving()); // again
    CHECK(no(begin_replica(first_record(uuid), {migration, 9, uuid, refusal})).text.find("owner") !=
          std::string::npos);
    no(begin_replica(replicating(), {later, 9, uuid, refusal}));
    no(begin_replica(promoted(), {later, 9, uuid, refusal}));
    no(begin_replica(fenced(), {later, 9, uuid, refusal}));
    const std::string another = "00000000-d9cb-469f-a165-70867728950e";
    CHECK(no(begin_replica(receiving(), {later, 9, another, refusal})).text.find("another disk") !=
          std::string::npos);
    no(begin_replica(receiving(), {later, 2, uuid, refusal}));
    no(begin_replica(Record(), {later, 1, "vm1", refusal}));
    no(begin_replica(Record(), {later, 0, uuid, refusal}));
    no(begin_replica(Record(), {"1", 1, uuid, refusal}));
}

TEST_CASE("a replica that a migration left behind is taken over, and that one refused") {
    const Record record = ok(begin_replica(handed_over(), {later, 3, uuid, "bb02"}));
    CHECK(refusal_token_of(record, migration) == refusal);
    CHECK(record.token_hash == "");
    CHECK(!record.consistent);
    no(promote(record, migration, "aa01"));
    no(promote(record, later, "aa01"));
    CHECK(ok(refuse(record, migration, "fresh")) == record);
}

TEST_CASE("a handover counts for its own migration only, and until it is taken back") {
    no(receive_handover(receiving(), later, 2, Lsn(1), token_hash("aa01")));
    no(receive_handover(receiving(), migration, 3, Lsn(1), token_hash("aa01")));
    no(receive_handover(receiving(), migration, 2, Lsn(1), "aa01"));
    no(receive_void(handed_over(), later, 2));
    const Record taken_back = ok(receive_void(handed_over(), migration, 2));
    CHECK((taken_back.stage == Stage::receiving));
    no(promote(taken_back, migration, "aa01"));
}

TEST_CASE("what is applied again takes the marks above it back") {
    const Record record = handed_over(); // at LSN 10
    CHECK(receive_base(record, Lsn(10)) == record);
    const Record taken_back = receive_base(record, Lsn(9));
    CHECK((taken_back.stage == Stage::receiving));
    CHECK(!taken_back.consistent);
    no(promote(taken_back, migration, "aa01"));

    Record marked = receiving();
    marked.consistent = true;
    CHECK(receive_base(marked, Lsn(1)) == marked);
    CHECK(!receive_base(marked, Lsn(0)).consistent); // another stream
}

TEST_CASE("promotion and refusal exclude each other") {
    no(promote(receiving(), migration, "aa01"));
    no(promote(handed_over(), migration, "aa02"));
    no(promote(handed_over(), migration, ""));
    no(promote(handed_over(), later, "aa01"));
    CHECK((promoted().role == Role::owner));
    CHECK(ok(promote(promoted(), migration, "aa01")) == promoted());
    no(promote(promoted(), migration, "aa02"));
    no(refuse(promoted(), migration, "fresh"));
    no(refuse(ok(finish(promoted(), migration)), migration, "fresh"));

    const Record refused = ok(refuse(handed_over(), migration, "fresh"));
    CHECK(refusal_token_of(refused, migration) == refusal);
    CHECK(ok(refuse(refused, migration, "fresh")) == refused);
    CHECK((no(promote(refused, migration, "aa01")).kind == ErrorKind::refused));
    no(receive_handover(refused, migration, 2, Lsn(11), token_hash("aa01")));
    no(begin_replica(refused, {migration, 3, uuid, refusal}));
}

TEST_CASE("the source can't refuse its own migration") {
    no(refuse(replicating(), migration, "fresh"));
    no(refuse(fenced(), migration, "fresh"));
    no(refuse(fenced(), "x", "fresh"));
}

TEST_CASE("a refusal may come before its migration does") {
    const Record record = ok(refuse(Record(), migration, "fresh"));
    CHECK(refusal_token_of(record, migration) == "fresh");
    CHECK((no(begin_replica(record, {migration, 2, uuid, refusal})).kind == ErrorKind::refused));
    CHECK((ok(begin_replica(record, {later, 2, uuid, refusal})).stage == Stage::receiving));
}

TEST_CASE("the newest refusals are kept") {
    Record record;
    const auto id = [](size_t i) { return fmt::format("{:032x}", i); };
    for (size_t i = 0; i < max_tombstones + 3; ++i) {
        record = ok(refuse(record, id(i), "fresh"));
    }
    CHECK(record.tombstones.size() == max_tombstones);
    CHECK(!refusal_token_of(record, id(2)));
    CHECK(refusal_token_of(record, id(3)));
    CHECK(refusal_token_of(record, id(max_tombstones + 2)));
}

TEST_CASE("finish ends what is decided and nothing else") {
    CHECK((ok(finish(fenced(), migration)).stage == Stage::over));
    CHECK((ok(finish(promoted(), migration)).stage == Stage::over));
    const Record over = ok(finish(promoted(), migration));
    CHECK(ok(finish(over, migration)) == over);
    CHECK((ok(begin_attempt(over, later, 3)).stage == Stage::replicating));
    no(finish(replicating(), migration));
    no(finish(handed_over(), migration));
    no(finish(promoted(), later));
    CHECK((ok(finish(ok(cancel(replicating())), migration)).stage == Stage::cancelled));
}

TEST_CASE("a start takes back what it can't vouch for, and keeps what was promised") {
    CHECK((at_start(quiesced()).stage == Stage::voided));
    CHECK((at_start(replicating()).stage == Stage::replicating));
    CHECK(at_start(fenced()) == fenced());
    CHECK(at_start(handed_over()) == handed_over());
    CHECK(at_start(promoted()) == promoted());
}

TEST_CASE("no peer uses up the generations") {
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    constexpr uint64_t step = uint64_t{1} << 32;
    for (const uint64_t generation : {most, most - 1, step + 2}) {
        CHECK((no(begin_attempt(first_record(uuid), migration, generation)).kind ==
               ErrorKind::refused));
        CHECK((no(begin_replica(receiving(), {later, generation + 1, uuid, refusal})).kind ==
               ErrorKind::refused));
    }
    CHECK((no(supersede(promoted(), migration, most)).kind == ErrorKind::refused));
    const uint64_t promoted_at = promoted().generation;
    CHECK((no(supersede(promoted(), migration, promoted_at + step + 1)).kind ==
           ErrorKind::refused));
    CHECK(ok(supersede(promoted(), migration, promoted_at + step)).generation ==
          promoted_at + step);
    CHECK(ok(begin_attempt(first_record(uuid), migration, step + 1)).generation == step + 1);
    CHECK(ok(begin_replica(Record(), {migration, step, uuid, refusal})).generation == step);
}
