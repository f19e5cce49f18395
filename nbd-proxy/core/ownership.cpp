// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/core/ownership.h"

#include "common/secrets.h"

#include <algorithm>
#include <array>

namespace drover {
namespace {

constexpr std::array role_names{"owner", "replica", "fenced", "forwarding", "owner-incomplete"};
constexpr std::array stage_names{"idle",
                                 "replicating",
                                 "quiescing",
                                 "quiesced",
                                 "voided",
                                 "cancelled",
                                 "fenced",
                                 "receiving",
                                 "handed-over",
                                 "refused",
                                 "promoted",
                                 "over"};
constexpr std::array request_names{"begin an attempt",
                                   "quiesce",
                                   "note a durable handover",
                                   "void the handover",
                                   "fence",
                                   "unfence",
                                   "cancel",
                                   "become a replica",
                                   "take a handover",
                                   "take a handover back",
                                   "be promoted",
                                   "take back that the VM may have run",
                                   "refuse the migration",
                                   "finish",
                                   "be taken by force",
                                   "be superseded"};

template <typename Enum, size_t Count>
std::optional<Enum> parse_name(const std::array<const char*, Count>& names, std::string_view text) {
    const auto found = std::find(names.begin(), names.end(), text);
    return found == names.end() ? std::nullopt : std::optional(Enum(found - names.begin()));
}

// What every pair of role and stage must keep to, whatever a row of the table says.
template <typename Check>
consteval bool for_all(Check check) {
    for (int role = 0; role < int(role_names.size()); ++role) {
        for (int stage = 0; stage < int(stage_names.size()); ++stage) {
            if (is_possible(Role(role), Stage(stage)) && !check(Role(role), Stage(stage))) {
                return false;
            }
        }
    }
    return true;
}

static_assert(for_all([](Role role, Stage stage) {
                  return role != Role::fenced || !next_stage(role, stage, Request::cancel);
              }),
              "fence and cancel exclude each other");
static_assert(for_all([](Role role, Stage stage) {
                  return stage == Stage::quiesced || stage == Stage::fenced ||
                         !next_stage(role, stage, Request::fence);
              }),
              "only what is durable at the destination is fenced");
static_assert(for_all([](Role role, Stage stage) {
                  return stage != Stage::refused || !next_stage(role, stage, Request::promote);
              }),
              "what was refused is never promoted");
static_assert(for_all([](Role role, Stage stage) {
                  return stage != Stage::over || !next_stage(role, stage, Request::refuse);
              }),
              "what is over is never refused");
static_assert(for_all([](Role role, Stage stage) {
                  return role != Role::owner || !next_stage(role, stage, Request::begin_replica);
              }),
              "an owner never becomes a replica without a fence");

Refusal refuse_with(ErrorKind kind, std::string text) {
    return {kind, std::move(text)};
}

std::string standing(const Record& record) {
    std::string text = fmt::format("the disk is {}", to_string(record.role));
    if (!record.migration.empty()) {
        text += fmt::format(" ({} in migration {})", to_string(record.stage), record.migration);
    }
    return text;
}

// What the operator can do where the table says no.
std::string_view advice(const Record& record, Request request) {
    if (record.role == Role::owner_incomplete) {
        return "wait until its blocks have all arrived";
    }
    if (record.stage == Stage::voided && request == Request::fence) {
        return "a write came after the quiesce: quiesce again";
    }
    switch (record.stage) {
    case Stage::fenced:
        return "run `drover recover`: it asks both sides and finishes or takes back the move";
    case Stage::promoted:
    case Stage::over:
        return record.role == Role::owner ? "it runs here already" : "it runs at the destination";
    case Stage::quiescing:
    case Stage::quiesced:
        return "a switchover is under way: cancel it first";
    case Stage::receiving:
    case Stage::handed_over:
        return "it belongs to a migration that comes in: promote or refuse that first";
    case Stage::replicating:
    case Stage::voided:
        return request == Request::finish ? "cancel the migration first" : "quiesce first";
    default:
        return "start a migration first";
    }
}

Refusal not_here(const Record& record, Request request) {
    return refuse_with(ErrorKind::state,
                       fmt::format("can't {}: {}; {}",
                                   request_names[size_t(request)],
                                   standing(record),
                                   advice(record, request)));
}

Refusal other_migration(const Record& record, Request request, const std::string& migration) {
    return refuse_with(ErrorKind::refused,
                       fmt::format("can't {} by migration {}: {}",
                                   request_names[size_t(request)],
                                   migration,
                                   standing(record)));
}

Refusal bad_id(std::string_view what, const std::string& value, std::string_view expected) {
    return refuse_with(ErrorKind::usage, fmt::format("{} '{}': {}", what, value, expected));
}

bool is_hash(const std::string& text) {
    const auto bytes = from_hex(text);
    return bytes && bytes->size() == 32;
}

bool opens(const std::string& token, const std::string& hash) {
    const std::string own = token_hash(token);
    return !own.empty() && equal_secret(own, hash);
}

void add_tombstone(Record& record, const std::string& migration, const std::string& token) {
    if (record.tombstones.size() >= max_tombstones) {
        record.tombstones.erase(record.tombstones.begin());
    }
    record.tombstones.push_back({migration, token});
}

void forget_handover(Record& record) {
    record.quiesce.clear();
    record.token.clear();
    record.token_hash.clear();
    record.handover = Lsn();
}

Step at(Record record, Stage stage) {
    record.stage = stage;
    return record;
}

// A generation is the larger one of both sides, and one more. A peer that lies must not be able to
// use all of them up: after the last one the disk could never be moved again.
bool leaps(const Record& record, uint64_t generation) {
    constexpr uint64_t largest_step = uint64_t{1} << 32;
    return generation > record.generation && generation - record.generation > largest_step;
}

Step leap_refused(const Record& record, uint64_t generation) {
    return refuse_with(ErrorKind::refused,
                       fmt::format("generation {} can't be the one after {}: the other side's "
                                   "record, or what it says of it, is not to be believed",
                                   generation,
                                   record.generation));
}

} // namespace

std::string_view to_string(Role role) {
    return role_names[size_t(role)];
}
std::string_view to_string(Stage stage) {
    return stage_names[size_t(stage)];
}
std::optional<Role> parse_role(std::string_view text) {
    return parse_name<Role>(role_names, text);
}
std::optional<Stage> parse_stage(std::string_view text) {
    return parse_name<Stage>(stage_names, text);
}

Record first_record(std::string uuid) {
    Record record;
    record.uuid = std::move(uuid);
    record.generation = 1;
    record.role = Role::owner;
    return record;
}

Step begin_attempt(const Record& record, const std::string& migration, uint64_t generation) {
    const auto stage = next_stage(record.role, record.stage, Request::begin_attempt);
    if (!stage) {
        return not_here(record, Request::begin_attempt);
    }
    if (!parse_migration_id(migration)) {
        return bad_id("migration", migration, "32 hexadecimal digits are expected");
    }
    const bool again = (record.stage == Stage::replicating || record.stage == Stage::voided) &&
                       migration == record.migration && generation == record.generation;
    if (leaps(record, generation)) {
        return leap_refused(record, generation);
    }
    if (!again && (generation <= record.generation || migration == record.migration)) {
        return refuse_with(
            ErrorKind::refused,
            fmt::format("generation {} of migration {} was used already: the disk's is {}; each "
                        "attempt needs an id of its own and a larger generation",
                        generation,
                        migration,
                        record.generation));
    }
    Record next = record;
    next.generation = generation;
    next.migration = migration;
    ++next.stream_counter;
    forget_handover(next);
    next.refusal_hash.clear();
    next.refusal_token.clear();
    return at(next, *stage);
}

Step quiesce(const Record& record, const std::string& quiesce_id, const QuiesceToken& token) {
    const auto stage = next_stage(record.role, record.stage, Request::quiesce);
    if (!stage) {
        return not_here(record, Request::quiesce);
    }
    if (quiesce_id.empty() || quiesce_id == record.quiesce) {
        return bad_id("quiesce", quiesce_id, "a new id is expected");
    }
    Record next = record;
    forget_handover(next);
    next.quiesce = quiesce_id;
    next.token = token.token;
    next.token_hash = token.token.empty() ? token.hash : token_hash(token.token);
    if (!is_hash(next.token_hash)) {
        return bad_id("token_hash", next.token_hash, "64 hexadecimal digits are expected");
    }
    return at(next, *stage);
}

Step handover_durable(const Record& record, const std::string& quiesce_id, Lsn lsn) {
    const auto stage = next_stage(record.role, record.stage, Request::handover_durable);
    if (!stage || quiesce_id != record.quiesce) {
        return not_here(record, Request::handover_durable);
    }
    Record next = record;
    next.handover = lsn;
    return at(next, *stage);
}

Step void_handover(const Record& record) {
    const auto stage = next_stage(record.role, record.stage, Request::void_handover);
    return stage ? at(record, *stage) : not_here(record, Request::void_handover);
}

Step fence(const Record& record, const FenceRequest& request) {
    const auto stage = next_stage(record.role, record.stage, Request::fence);
    if (!stage) {
        return not_here(record, Request::fence);
    }
    if (record.stage == Stage::fenced && request.quiesce_id.empty()) {
        return record;
    }
    if (request.quiesce_id != record.quiesce) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("quiesce {} is not the present one ({}): {}",
                                       request.quiesce_id,
                                       record.quiesce,
                                       standing(record)));
    }
    if (record.stage == Stage::fenced) {
        return record;
    }
    if (!request.refusal_hash.empty() && !is_hash(request.refusal_hash)) {
        return bad_id("refusal_hash", request.refusal_hash, "64 hexadecimal digits are expected");
    }
    Record next = record;
    if (next.token.empty()) {
        if (!opens(request.token, record.token_hash)) {
            return refuse_with(ErrorKind::refused,
                               "the token is not the first disk's of this quiesce: fence the first "
                               "disk, then the others with its token");
        }
        next.token = request.token;
    }
    next.refusal_hash = request.refusal_hash;
    next.forward = request.forward;
    next.role = request.forward ? Role::forwarding : Role::fenced;
    return at(next, *stage);
}

Step unfence(const Record& record, const std::string& refusal_token) {
    const auto stage = next_stage(record.role, record.stage, Request::unfence);
    if (!stage) {
        return not_here(record, Request::unfence);
    }
    if (record.refusal_hash.empty()) {
        return record.role == Role::owner
                   ? not_here(record, Request::unfence)
                   : refuse_with(
                         ErrorKind::refused,
                         "can't unfence: the destination is a plain NBD server, which can't "
                         "refuse; its copy is the newer one");
    }
    if (!opens(refusal_token, record.refusal_hash)) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("can't unfence: that is not the destination's refusal of "
                                       "migration {}; run `drover recover`",
                                       record.migration));
    }
    Record next = record;
    next.role = Role::owner;
    next.forward.reset();
    forget_handover(next);
    return at(next, *stage);
}

Step cancel(const Record& record, const std::string& quiesce_id) {
    const auto stage = next_stage(record.role, record.stage, Request::cancel);
    if (!stage) {
        return not_here(record, Request::cancel);
    }
    if (*stage == record.stage) {
        return record;
    }
    if (!quiesce_id.empty() && quiesce_id != record.quiesce) {
        return refuse_with(
            ErrorKind::state,
            fmt::format("quiesce {} is not the present one: {}", quiesce_id, standing(record)));
    }
    Record next = record;
    forget_handover(next);
    return at(next, *stage);
}

Step begin_replica(const Record& record, const ReplicaRequest& request) {
    const auto stage = next_stage(record.role, record.stage, Request::begin_replica);
    if (!parse_migration_id(request.migration)) {
        return bad_id("migration", request.migration, "32 hexadecimal digits are expected");
    }
    if (!is_uuid(request.uuid)) {
        return bad_id("uuid", request.uuid, "a UUID is expected");
    }
    if (!record.uuid.empty() && record.uuid != request.uuid) {
        return refuse_with(
            ErrorKind::refused,
            fmt::format("the image here belongs to another disk (UUID {}, not {}): {}; choose "
                        "another name, or move the image and its state directory away",
                        record.uuid,
                        request.uuid,
                        standing(record)));
    }
    if (!stage) {
        return not_here(record, Request::begin_replica);
    }
    if (refusal_token_of(record, request.migration)) {
        return refuse_with(
            ErrorKind::refused,
            fmt::format("migration {} was refused here and stays so: start a new one",
                        request.migration));
    }
    if (record.stage == Stage::receiving && request.migration == record.migration &&
        request.generation == record.generation) {
        return record;
    }
    if (leaps(record, request.generation)) {
        return leap_refused(record, request.generation);
    }
    if (request.generation <= record.generation) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("generation {} is not larger than the {} of the disk here: "
                                       "the source's copy is the older one",
                                       request.generation,
                                       record.generation));
    }
    Record next = record;
    if (record.stage == Stage::receiving || record.stage == Stage::handed_over) {
        add_tombstone(next, record.migration, record.refusal_token);
    }
    forget_handover(next);
    next.uuid = request.uuid;
    next.generation = request.generation;
    next.role = Role::replica;
    next.migration = request.migration;
    next.refusal_token = request.refusal_token;
    next.refusal_hash = token_hash(request.refusal_token);
    next.consistent = false;
    next.may_have_run = false;
    return at(next, *stage);
}

Record receive_session(const Record& record, const StreamId& stream) {
    Record next = record;
    const StreamId& last = record.largest_stream;
    next.consistent =
        record.consistent && stream.generation == last.generation && stream.counter == last.counter;
    next.largest_stream = stream;
    return next;
}

Step receive_handover(const Record& record,
                      const std::string& migration,
                      uint64_t generation,
                      Lsn lsn,
                      const std::string& token_hash) {
    const auto stage = next_stage(record.role, record.stage, Request::receive_handover);
    if (!stage) {
        return not_here(record, Request::receive_handover);
    }
    if (migration != record.migration || generation != record.generation) {
        return other_migration(record, Request::receive_handover, migration);
    }
    if (!is_hash(token_hash)) {
        return bad_id("token hash", token_hash, "64 hexadecimal digits are expected");
    }
    Record next = record;
    next.handover = lsn;
    next.token_hash = token_hash;
    next.consistent = true;
    return at(next, *stage);
}

Step receive_void(const Record& record, const std::string& migration, uint64_t generation) {
    const auto stage = next_stage(record.role, record.stage, Request::receive_void);
    if (!stage) {
        return not_here(record, Request::receive_void);
    }
    if (migration != record.migration || generation != record.generation) {
        return other_migration(record, Request::receive_void, migration);
    }
    Record next = record;
    forget_handover(next);
    return at(next, *stage);
}

Record receive_base(const Record& record, Lsn base) {
    const bool handed_over = record.stage == Stage::handed_over && base < record.handover;
    if (!handed_over && base > Lsn()) {
        return record;
    }
    Record next = record;
    next.consistent = false;
    if (handed_over) {
        forget_handover(next);
        next.stage = Stage::receiving;
    }
    return next;
}

Step promote(const Record& record, const std::string& migration, const std::string& token) {
    if (refusal_token_of(record, migration)) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("migration {} was refused here and stays so: the source can "
                                       "be unfenced (`drover recover`)",
                                       migration));
    }
    if (migration != record.migration) {
        return other_migration(record, Request::promote, migration);
    }
    const auto stage = next_stage(record.role, record.stage, Request::promote);
    if (!stage) {
        return not_here(record, Request::promote);
    }
    if (!opens(token, record.token_hash)) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("can't be promoted: the token is not that of the handover "
                                       "that came with migration {}",
                                       migration));
    }
    Record next = record;
    next.role = Role::owner;
    next.token = token;
    next.may_have_run = true;
    next.forward.reset();
    next.clean.reset();
    return at(next, *stage);
}

Step did_not_run(const Record& record, const std::string& migration) {
    if (migration != record.migration) {
        return other_migration(record, Request::did_not_run, migration);
    }
    const auto stage = next_stage(record.role, record.stage, Request::did_not_run);
    if (!stage) {
        return not_here(record, Request::did_not_run);
    }
    Record next = record;
    next.may_have_run = false;
    return at(next, *stage);
}

Step refuse(const Record& record, const std::string& migration, const std::string& fresh_token) {
    if (!parse_migration_id(migration)) {
        return bad_id("migration", migration, "32 hexadecimal digits are expected");
    }
    if (refusal_token_of(record, migration)) {
        return record;
    }
    Record next = record;
    if (migration != record.migration) {
        add_tombstone(next, migration, fresh_token);
        return next;
    }
    const auto stage = next_stage(record.role, record.stage, Request::refuse);
    if (!stage || (record.stage == Stage::promoted && record.may_have_run)) {
        return not_here(record, Request::refuse);
    }
    add_tombstone(next, migration, record.refusal_token);
    forget_handover(next);
    next.role = next.forward ? Role::forwarding : Role::replica;
    return at(next, *stage);
}

std::optional<std::string> refusal_token_of(const Record& record, const std::string& migration) {
    for (const Tombstone& tombstone : record.tombstones) {
        if (tombstone.migration == migration) {
            return tombstone.refusal_token;
        }
    }
    return std::nullopt;
}

Step finish(const Record& record, const std::string& migration) {
    if (migration != record.migration) {
        return other_migration(record, Request::finish, migration);
    }
    const auto stage = next_stage(record.role, record.stage, Request::finish);
    return stage ? at(record, *stage) : not_here(record, Request::finish);
}

Step force(const Record& record, const std::string& migration) {
    if (migration != record.migration) {
        return other_migration(record, Request::force, migration);
    }
    if (record.role == Role::owner && record.stage != Stage::promoted) {
        return record; // it was, or it is this side's anyway
    }
    const auto stage = next_stage(record.role, record.stage, Request::force);
    if (!stage) {
        return not_here(record, Request::force);
    }
    if (record.stage == Stage::receiving && !record.consistent) {
        return refuse_with(ErrorKind::refused,
                           "can't be taken by force: not all of the disk has come, so the image is "
                           "no state that the source's disk ever had");
    }
    Record next = record;
    next.role = Role::owner;
    ++next.generation;
    next.forward.reset();
    forget_handover(next);
    next.may_have_run = true;
    next.clean.reset();
    return at(next, *stage);
}

Step supersede(const Record& record, const std::string& migration, uint64_t generation) {
    if (migration != record.migration) {
        return other_migration(record, Request::supersede, migration);
    }
    if (!may_write(record) && generation == record.generation) {
        return record; // it was
    }
    const auto stage = next_stage(record.role, record.stage, Request::supersede);
    if (!stage) {
        return not_here(record, Request::supersede);
    }
    if (generation <= record.generation) {
        return refuse_with(ErrorKind::refused,
                           fmt::format("can't be superseded by generation {}: the disk's is {}",
                                       generation,
                                       record.generation));
    }
    if (leaps(record, generation)) {
        return leap_refused(record, generation);
    }
    Record next = record;
    next.role = Role::fenced;
    next.generation = generation;
    forget_handover(next);
    return at(next, *stage);
}

Record at_start(const Record& record) {
    if (record.role == Role::replica && record.stage == Stage::receiving) {
        // Applied since its mark and in the cache of the host alone: any of it may be lost.
        return at_first_session(record);
    }
    const Step step = void_handover(record);
    const Record* const next = std::get_if<Record>(&step);
    return next != nullptr ? *next : record;
}

Record at_first_session(const Record& record) {
    Record next = record;
    next.consistent = record.consistent && record.stage != Stage::receiving;
    return next;
}

} // namespace drover
