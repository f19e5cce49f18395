// SPDX-License-Identifier: GPL-2.0-or-later
// Who may write a disk: the durable record that each side keeps, and every step
// that may change it. Pure: a step takes the record as it is and what was asked
// for, and answers with the record to be made durable (RecordStore::save)
// *before* anybody is told, or with a refusal.
//
//   source                                     destination
//   owner: idle ─ begin_attempt ─▶ replicating     replica: idle ─ begin_replica ─▶ receiving
//            replicating ─ quiesce ─▶ quiescing               receiving ◀─▶ handed_over
//            quiescing ─ handover_durable ─▶ quiesced         (receive_handover, receive_void)
//            (a write: void_handover ─▶ voided)
//            all of these ─ cancel ─▶ cancelled             both ─ refuse ─▶ refused
//   fenced   quiesced ─ fence ─▶ fenced ─ finish ─▶ over      handed_over ─ promote ─▶ promoted
//   (or forwarding)  fenced ─ unfence ─▶ cancelled    owner:  promoted ─ finish ─▶ over
//                                                             promoted, and the VM did not run:
//                                                             refuse
//
// Why at most one side owns the disk: the destination is promoted only by the token, which the
// source shows only after it has durably ceased to be the owner. The source becomes the
// owner again only by the refusal token, which the destination shows only after it has durably
// given up being promoted by this migration. Messages may come late, twice or never.
//
// With several disks the first one's plugin makes the token; the others are given its hash to
// quiesce and the token itself to fence.
//
// `force` and `supersede` are outside of that: an operator answers for it that the other side has
// died. The side that takes the disk by force burns a generation, so that the other one, should it
// come back, is the older.
#pragma once

#include "common/error.h"
#include "nbd-proxy/core/frame.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace drover {

enum class Role : uint8_t { owner, replica, fenced, forwarding, owner_incomplete };

// How far the present (or last) attempt has come on this side.
enum class Stage : uint8_t {
    idle,        // none yet
    replicating, // source: as the owner, up to the fence
    quiescing,   // a quiesce id and a token exist, the handover is on its way
    quiesced,    // the handover is durable at the destination
    voided,      // a write came after the quiesce: that one can't be fenced any more
    cancelled,   // given up, or unfenced
    fenced,      // the source has ceased to be the owner
    receiving,   // destination: a replica of this migration
    handed_over, // the handover was received and is durable here
    refused,     // will never be promoted by this migration
    promoted,    // the owner by this migration
    over,        // finished: the disk runs at the destination
};

// As in status and on disk: "owner-incomplete", "handed-over".
std::string_view to_string(Role role);
std::string_view to_string(Stage stage);
std::optional<Role> parse_role(std::string_view text);
std::optional<Stage> parse_stage(std::string_view text);

// Where a forwarding source reaches the new owner: host, port and the key, or a URI, or the
// path of a unix socket. The key itself is in key_file.
struct ForwardTarget {
    std::string host;
    uint16_t port = 0;
    std::string psk_user;
    std::string key_file;
    std::string uri;
    std::string socket;
    bool operator==(const ForwardTarget&) const = default;
};

struct Tombstone {
    std::string migration;
    std::string refusal_token;
    bool operator==(const Tombstone&) const = default;
};

// The image's attributes when everything of it was on disk and nobody wrote it.
struct CleanMark {
    uint64_t device = 0, inode = 0, size = 0;
    int64_t mtime_ns = 0, ctime_ns = 0;
    bool operator==(const CleanMark&) const = default;
};

// Ids, tokens and hashes are lower-case hexadecimal; "" is none.
struct Record {
    std::string uuid;        // "": nothing was ever prepared here (a blank destination)
    uint64_t generation = 0; // the largest that this disk has taken part in
    Role role = Role::replica;
    Stage stage = Stage::idle;
    std::string migration; // of the present or the last attempt

    // Source. Each stream (a start of replication) has a number that was never used before.
    uint64_t stream_counter = 0;
    std::string quiesce;                  // the present one's id
    std::string token;                    // "" for a further disk until it is fenced; destination:
                                          // what it was promoted with
    std::string token_hash;               // destination: as the handover brought it
    Lsn handover;                         // its LSN, both sides
    std::string refusal_hash;             // source: given to fence. Destination: of its own token
    std::optional<ForwardTarget> forward; // set while the role is, or may become again, forwarding

    // Destination.
    std::string refusal_token;
    StreamId largest_stream;           // frames of a smaller one are refused
    bool consistent = false;           // the image is a write-order prefix of the source's
    std::vector<Tombstone> tombstones; // refused migrations, oldest first
    // Promoted, and nobody has said since that its VM did not run. While it has not, the
    // destination may still refuse, and the VM go on at the source.
    bool may_have_run = false;

    // The image that this record belongs to (kept by RecordStore).
    std::string machine_id;
    uint64_t inode = 0;       // 0: not a file
    std::string fenced_image; // path of the image's file while it is, or is being, set aside
    uint32_t fenced_mode = 0; // the permissions that it had
    std::optional<CleanMark> clean;
    uint64_t version = 0; // counts the saves
    uint64_t marked = 0;  // the version that is on the image's marker

    bool operator==(const Record&) const = default;
};

inline constexpr size_t max_tombstones = 64;

// The guest's writes may reach the image.
constexpr bool may_write(Role role) {
    return role == Role::owner || role == Role::owner_incomplete;
}
constexpr bool may_write(const Record& record) {
    return may_write(record.role);
}

// What a step may be asked for.
enum class Request : uint8_t {
    begin_attempt,
    quiesce,
    handover_durable,
    void_handover,
    fence,
    unfence,
    cancel,
    begin_replica,
    receive_handover,
    receive_void,
    promote,
    did_not_run,
    refuse,
    finish,
    force,
    supersede,
};

// The table: the stage that the request leads to from a role and stage, nullopt where it is
// refused. A request that was carried out already leads to where it stands. The steps below add the
// conditions on ids, tokens and generations.
constexpr std::optional<Stage> next_stage(Role role, Stage stage, Request request);
// Whether a record of this role can stand at this stage.
constexpr bool is_possible(Role role, Stage stage);

// Not possible. The text is for the operator: what stands in the way, and what to do.
struct Refusal {
    ErrorKind kind = ErrorKind::state; // state, or refused (a safety rule: trying again won't help)
    std::string text;
};
using Step = std::variant<Record, Refusal>;

// A new disk at its owner.
Record first_record(std::string uuid);

// Source. `generation` is burnt, also if the attempt fails. The same migration and generation
// again, before its quiesce, is a new stream of the same attempt (the plugin was started again).
Step begin_attempt(const Record& record, const std::string& migration, uint64_t generation);

// The first disk passes a fresh token; a further one passes the first one's hash instead.
struct QuiesceToken {
    std::string token;
    std::string hash; // ignored if there is a token
};
Step quiesce(const Record& record, const std::string& quiesce_id, const QuiesceToken& token);
Step handover_durable(const Record& record, const std::string& quiesce_id, Lsn lsn);
// Whatever ends a quiesce but the fence: a write, a time-out. Always possible up to the fence and
// it must take effect before the write does, but need not be durable then: at_start does
// the same to a process that has forgotten it.
Step void_handover(const Record& record);

struct FenceRequest {
    std::string quiesce_id;
    std::string refusal_hash; // "": the destination is a plain NBD server, and nothing unfences
    std::string token;        // of the first disk, for a further one
    std::optional<ForwardTarget> forward; // the client stays here (--disk-only)
};
// Of a disk that is fenced already, quiesce_id may be "": its token is in the record.
Step fence(const Record& record, const FenceRequest& request);
Step unfence(const Record& record, const std::string& refusal_token);
// quiesce_id "": whatever is under way. Excludes fence, as fence excludes it.
Step cancel(const Record& record, const std::string& quiesce_id = "");

// Destination. refusal_token: fresh; kept back until refuse. A replica that an earlier migration
// left here is taken over, and that migration refused with it.
struct ReplicaRequest {
    std::string migration;
    uint64_t generation = 0;
    std::string uuid;
    std::string refusal_token;
};
Step begin_replica(const Record& record, const ReplicaRequest& request);
// A session that is newer than any before. What an earlier stream has marked does not hold for the
// next one, which begins with everything dirty.
Record receive_session(const Record& record, const StreamId& stream);
// A handover frame, or a void one, of the migration; everything before it is durable here.
Step receive_handover(const Record& record,
                      const std::string& migration,
                      uint64_t generation,
                      Lsn lsn,
                      const std::string& token_hash);
Step receive_void(const Record& record, const std::string& migration, uint64_t generation);
// A session begins: everything above `base` is applied again, so a mark that is above it does not
// stand any more. 0: a new stream, all of whose blocks come anew.
Record receive_base(const Record& record, Lsn base);
// From now on the VM may have run.
Step promote(const Record& record, const std::string& migration, const std::string& token);
// Whoever was to run the VM knows that it did not, and nothing was written since.
Step did_not_run(const Record& record, const std::string& migration);
// The record then has a tombstone of the migration: refusal_token_of gives its token.
// fresh_token: for a migration that is not known here (its prepare may still be on the way).
Step refuse(const Record& record, const std::string& migration, const std::string& fresh_token);
std::optional<std::string> refusal_token_of(const Record& record, const std::string& migration);

// Either side. On a fenced source: the destination has been promoted.
Step finish(const Record& record, const std::string& migration);

// The other side has died, says the operator. A fenced source is the owner again; a replica whose
// image is a prefix of the source's, or a promoted one whose source never said that it knows, is
// the owner for good. Burns a generation.
Step force(const Record& record, const std::string& migration);
// The other side was forced to take the disk while this one could not be asked: it is the owner, at
// `generation`. Only before this side has finished the migration.
Step supersede(const Record& record, const std::string& migration, uint64_t generation);

// When a process starts on the record: a quiesce of the one before can't be fenced any more,
// since nobody knows what was written after it. A replica is not consistent until the source says
// so again: what was applied after the mark need not be on disk.
Record at_start(const Record& record);
// A source comes back to a replica whose process is another one. What had come to the disk may be
// sent again, older over newer; so one that had stopped cleanly, and stayed consistent, is so no
// more.
Record at_first_session(const Record& record);

// ---- the table

constexpr bool is_possible(Role role, Stage stage) {
    switch (stage) {
    case Stage::idle:
        return role == Role::owner || role == Role::replica;
    case Stage::replicating:
    case Stage::quiescing:
    case Stage::quiesced:
    case Stage::voided:
    case Stage::cancelled:
        return role == Role::owner;
    case Stage::fenced:
        return role == Role::fenced || role == Role::forwarding;
    case Stage::receiving:
    case Stage::handed_over:
        return role == Role::replica;
    case Stage::refused: // forwarding: the way back was refused, the client is still served
        return role == Role::replica || role == Role::forwarding;
    case Stage::promoted:
        return role == Role::owner || role == Role::owner_incomplete;
    case Stage::over:
        return role != Role::replica;
    }
    return false;
}

constexpr std::optional<Stage> next_stage(Role role, Stage stage, Request request) {
    const bool owner = role == Role::owner;
    const bool attempt = stage == Stage::replicating || stage == Stage::quiescing ||
                         stage == Stage::quiesced || stage == Stage::voided;
    const bool handing = stage == Stage::quiescing || stage == Stage::quiesced;
    const bool aside = role == Role::fenced || role == Role::forwarding;
    const bool replica = stage == Stage::receiving || stage == Stage::handed_over;
    const auto only_if = [](bool condition, Stage to) {
        return condition ? std::optional(to) : std::nullopt;
    };
    switch (request) {
    case Request::begin_attempt:
        return only_if(owner && !handing, Stage::replicating);
    case Request::quiesce:
        return only_if(stage == Stage::replicating || stage == Stage::voided, Stage::quiescing);
    case Request::handover_durable:
        return only_if(handing, Stage::quiesced);
    case Request::void_handover:
        return handing ? Stage::voided : only_if(owner, stage);
    case Request::fence:
        return only_if(stage == Stage::quiesced || stage == Stage::fenced, Stage::fenced);
    case Request::unfence:
        return only_if((aside && (stage == Stage::fenced || stage == Stage::over)) ||
                           stage == Stage::cancelled,
                       Stage::cancelled);
    case Request::cancel:
        return attempt ? Stage::cancelled : only_if(owner, stage);
    case Request::begin_replica:
        return only_if(role == Role::replica || (aside && stage != Stage::fenced),
                       Stage::receiving);
    case Request::receive_handover:
        return only_if(replica, Stage::handed_over);
    case Request::receive_void:
        return only_if(replica, Stage::receiving);
    case Request::promote:
        return stage == Stage::handed_over
                   ? Stage::promoted
                   : only_if(owner && (stage == Stage::promoted || stage == Stage::over), stage);
    case Request::did_not_run:
        return only_if(owner && stage == Stage::promoted, stage);
    case Request::refuse:
        return only_if(replica || stage == Stage::refused || (owner && stage == Stage::promoted),
                       Stage::refused);
    case Request::finish:
        return aside || stage == Stage::promoted || stage == Stage::over
                   ? only_if(stage != Stage::refused, Stage::over)
                   : only_if(stage == Stage::cancelled || stage == Stage::refused ||
                                 stage == Stage::idle,
                             stage);
    case Request::force:
        return replica || stage == Stage::promoted
                   ? std::optional(Stage::over)
                   : only_if(aside && stage != Stage::refused, Stage::cancelled);
    case Request::supersede:
        return only_if(owner && stage != Stage::over, Stage::over);
    }
    return std::nullopt;
}

} // namespace drover
