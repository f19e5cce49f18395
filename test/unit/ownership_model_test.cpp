// SPDX-License-Identifier: GPL-2.0-or-later
// Every order in which the steps of two records can happen, with messages that
// come late, twice or never: whoever runs the migration may ask either side for anything, at
// any time, with every secret that a side has shown so far. Breadth first over all
// reachable states.
#include "common/secrets.h"
#include "nbd-proxy/core/ownership.h"

#include <bitset>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

using namespace drover;

namespace {

constexpr size_t max_attempts = 3;
constexpr size_t max_quiesces = 2;
const std::string disk_uuid = "0f8fad5b-d9cb-469f-a165-70867728950e";

struct Attempt {
    size_t source = 0; // 0 or 1; the other is the destination
    uint64_t generation = 0;
    size_t quiesces = 1;
};

// What has been sent or shown. Only ever grows.
enum Fact : size_t {
    prepared,     // the refusal hash is known
    refused,      // a refusal token is known
    was_promoted, // promote was answered
    void_sent,
    attempt_facts,
};
enum QuiesceFact : size_t {
    handover_sent,
    handover_acknowledged,
    token_known,
    written_after, // a write was answered after this quiesce began
    quiesce_facts,
};
using Facts = std::bitset<max_attempts*(attempt_facts + max_quiesces * quiesce_facts)>;

struct World {
    Record side[2];
    Facts facts;
};

size_t at(size_t attempt, Fact fact) {
    return attempt * (attempt_facts + max_quiesces * quiesce_facts) + fact;
}
size_t at(size_t attempt, size_t quiesce, QuiesceFact fact) {
    return at(attempt, Fact(attempt_facts + quiesce * quiesce_facts + fact));
}

std::string migration_id(size_t attempt) {
    return std::string(31, '0') + char('1' + attempt);
}
std::string quiesce_id(size_t attempt, size_t quiesce) {
    return fmt::format("{}{}", attempt + 1, quiesce + 1);
}
std::string token(size_t attempt, size_t quiesce) {
    return "aa" + quiesce_id(attempt, quiesce);
}
std::string own_refusal(size_t attempt) {
    return fmt::format("bb0{}", attempt + 1);
}
std::string unknown_refusal(size_t attempt) {
    return fmt::format("cc0{}", attempt + 1);
}

std::string key_of(const World& world) {
    std::string key;
    for (const Record& record : world.side) {
        key += fmt::format("{}.{}.{}.{}.{}.{}.{}.{}.{}:",
                           int(record.role),
                           int(record.stage),
                           record.generation,
                           record.migration.empty() ? ' ' : record.migration.back(),
                           record.quiesce,
                           record.token,
                           record.token_hash.substr(0, 4),
                           record.refusal_token,
                           record.refusal_hash.substr(0, 4));
        for (const Tombstone& tombstone : record.tombstones) {
            key += tombstone.migration.back() + tombstone.refusal_token;
        }
        key += '|';
    }
    return key + world.facts.to_string();
}

class Explorer {
public:
    explicit Explorer(std::vector<Attempt> attempts) : attempts_(std::move(attempts)) {}

    void run() {
        World start;
        start.side[0] = first_record(disk_uuid);
        visit(start);
        while (!queue_.empty()) {
            const World world = std::move(queue_.front());
            queue_.pop_front();
            expand(world);
            check_recovery(world);
        }
    }

    size_t states() const { return seen_.size(); }
    // Everything that the worlds came by, so that a test can tell that it was reached at all.
    std::set<std::pair<Role, Stage>> standings[2];
    size_t lost_writes = 0, two_owners = 0, stuck = 0;
    std::string first_problem;

private:
    void visit(const World& world) {
        const std::string key = key_of(world);
        if (!seen_.insert(key).second) {
            return;
        }
        for (size_t side = 0; side < 2; ++side) {
            standings[side].emplace(world.side[side].role, world.side[side].stage);
        }
        if (may_write(world.side[0]) && may_write(world.side[1])) {
            problem(two_owners, key);
        }
        queue_.push_back(world);
    }

    void problem(size_t& counter, const std::string& key) {
        if (++counter == 1 && first_problem.empty()) {
            first_problem = key;
        }
    }

    // A step that is possible leads to a new world; `shown`: what the answer tells.
    template <typename... Shown>
    bool take(const World& world, size_t side, const Step& step, Shown... shown) {
        const Record* const next = std::get_if<Record>(&step);
        if (next == nullptr) {
            return false;
        }
        World after = world;
        after.side[side] = *next;
        (after.facts.set(shown), ...);
        visit(after);
        return true;
    }

    void expand(const World& world) {
        for (size_t side = 0; side < 2; ++side) {
            take(world, side, at_start(world.side[side]));
            if (may_write(world.side[side])) {
                write(world, side);
            }
        }
        for (size_t attempt = 0; attempt < attempts_.size(); ++attempt) {
            expand_source(world, attempt);
            expand_destination(world, attempt);
            for (size_t quiesce = 0; quiesce < attempts_[attempt].quiesces; ++quiesce) {
                expand_quiesce(world, attempt, quiesce);
            }
        }
    }

    // Its void may be lost with the process that took the write: then the next one starts.
    void write(const World& world, size_t side) {
        World noted = world;
        for (size_t attempt = 0; attempt < attempts_.size(); ++attempt) {
            for (size_t quiesce = 0; quiesce < attempts_[attempt].quiesces; ++quiesce) {
                if (attempts_[attempt].source == side &&
                    world.facts[at(attempt, quiesce, handover_sent)]) {
                    noted.facts.set(at(attempt, quiesce, written_after));
                    noted.facts.set(at(attempt, void_sent));
                }
            }
        }
        World crashed = noted;
        noted.side[side] = std::get<Record>(void_handover(world.side[side])); // or throws
        visit(noted);
        crashed.side[side] = at_start(world.side[side]);
        visit(crashed);
    }

    void expand_source(const World& world, size_t attempt) {
        const size_t side = attempts_[attempt].source;
        const Record& record = world.side[side];
        const std::string id = migration_id(attempt);
        take(world, side, begin_attempt(record, id, attempts_[attempt].generation));
        take(world, side, drover::cancel(record));
        for (const std::string& shown : {own_refusal(attempt), unknown_refusal(attempt)}) {
            if (world.facts[at(attempt, refused)] &&
                refusal_token_of(world.side[1 - side], id) == shown) {
                take(world, side, unfence(record, shown));
            }
        }
        if (world.facts[at(attempt, was_promoted)]) {
            take(world, side, finish(record, id));
        }
    }

    void expand_destination(const World& world, size_t attempt) {
        const size_t side = 1 - attempts_[attempt].source;
        const Record& record = world.side[side];
        const std::string id = migration_id(attempt);
        take(world,
             side,
             begin_replica(record,
                           {id, attempts_[attempt].generation, disk_uuid, own_refusal(attempt)}),
             at(attempt, prepared));
        if (world.facts[at(attempt, void_sent)]) {
            take(world, side, receive_void(record, id, attempts_[attempt].generation));
        }
        take(world, side, refuse(record, id, unknown_refusal(attempt)), at(attempt, refused));
        take(world, side, finish(record, id));
        take(world, side, promote(record, id, "ee")); // guessed
    }

    void expand_quiesce(const World& world, size_t attempt, size_t quiesce) {
        const size_t source = attempts_[attempt].source;
        const size_t destination = 1 - source;
        const std::string id = quiesce_id(attempt, quiesce);
        const auto known = [&](QuiesceFact fact) {
            return world.facts[at(attempt, quiesce, fact)];
        };
        if (!known(handover_sent)) {
            if (world.side[source].migration == migration_id(attempt)) {
                take(world,
                     source,
                     drover::quiesce(world.side[source], id, {token(attempt, quiesce), ""}),
                     at(attempt, quiesce, handover_sent));
            }
            return;
        }
        take(world,
             destination,
             receive_handover(world.side[destination],
                              migration_id(attempt),
                              attempts_[attempt].generation,
                              Lsn(quiesce + 1),
                              token_hash(token(attempt, quiesce))),
             at(attempt, quiesce, handover_acknowledged));
        if (known(handover_acknowledged)) {
            take(world, source, handover_durable(world.side[source], id, Lsn(quiesce + 1)));
        }
        if (world.facts[at(attempt, prepared)]) {
            take(
                world,
                source,
                fence(world.side[source], {id, token_hash(own_refusal(attempt)), "", std::nullopt}),
                at(attempt, quiesce, token_known));
        }
        if (known(token_known)) {
            use_token(world, attempt, quiesce);
        }
    }

    // With any migration id, and at either side: a token must open nothing but its own handover.
    void use_token(const World& world, size_t attempt, size_t quiesce) {
        for (size_t named = 0; named < attempts_.size(); ++named) {
            const size_t side = 1 - attempts_[named].source;
            const Step step =
                promote(world.side[side], migration_id(named), token(attempt, quiesce));
            if (take(world, side, step, at(named, was_promoted)) &&
                world.facts[at(attempt, quiesce, written_after)]) {
                problem(lost_writes, key_of(world));
            }
        }
    }

    // What `drover recover` does when nobody owns the disk: the destination refuses, the source
    // goes on. It must work from wherever things were left.
    void check_recovery(World world) {
        for (size_t side = 0; side < 2; ++side) {
            Record& source = world.side[side];
            Record& destination = world.side[1 - side];
            if (source.stage != Stage::fenced || may_write(destination)) {
                continue;
            }
            const Step given_up = refuse(destination, source.migration, "dd");
            if (std::holds_alternative<Record>(given_up)) {
                destination = std::get<Record>(given_up);
                const Step back =
                    unfence(source, refusal_token_of(destination, source.migration).value_or(""));
                if (std::holds_alternative<Record>(back)) {
                    source = std::get<Record>(back);
                }
            }
        }
        if (may_write(world.side[0]) == may_write(world.side[1])) {
            problem(stuck, key_of(world));
        }
    }

    std::vector<Attempt> attempts_;
    std::set<std::string> seen_;
    std::deque<World> queue_;
};

void check_all(const Explorer& explorer) {
    INFO("first problem: ", explorer.first_problem, " states: ", explorer.states());
    CHECK(explorer.two_owners == 0);
    CHECK(explorer.lost_writes == 0);
    CHECK(explorer.stuck == 0);
}

} // namespace

TEST_CASE("one migration that quiesces twice: one owner in each order of events") {
    Explorer explorer({{0, 2, 2}});
    explorer.run();
    check_all(explorer);
    CHECK(explorer.standings[1].contains({Role::owner, Stage::over}));
    CHECK(explorer.standings[0].contains({Role::fenced, Stage::over}));
    CHECK(explorer.standings[0].contains({Role::owner, Stage::cancelled}));
}

TEST_CASE("a migration that is tried again with another id: one owner in each order of events") {
    Explorer explorer({{0, 2, 2}, {0, 3, 2}});
    explorer.run();
    check_all(explorer);
    CHECK(explorer.standings[1].contains({Role::owner, Stage::promoted}));
    CHECK(explorer.standings[1].contains({Role::replica, Stage::refused}));
}

TEST_CASE("there and back: one owner in each order of events") {
    Explorer explorer({{0, 2, 1}, {1, 3, 2}, {0, 4, 1}});
    explorer.run();
    check_all(explorer);
    CHECK(explorer.standings[0].contains({Role::owner, Stage::promoted}));
    CHECK(explorer.standings[0].contains({Role::fenced, Stage::over}));
    CHECK(explorer.standings[1].contains({Role::fenced, Stage::over}));
}
