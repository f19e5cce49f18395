// SPDX-License-Identifier: GPL-2.0-or-later
// The bytes of a record: a line with format and checksum, then JSON.
#include "nbd-proxy/record_store.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace drover {
namespace {

using Json = nlohmann::json;

constexpr std::string_view magic = "drover-record ";
constexpr unsigned format = 1;

[[noreturn]] void refuse_file(const std::string& name, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}. Nothing was changed. Put the right file back from a backup; "
                            "if there is none, docs/state-files.md says how to start anew",
                            name,
                            why));
}

// Takes the members of an object one by one, with their types, and then wants none left.
class Fields {
public:
    Fields(const Json& object, const std::string& name) : left_(object), name_(name) {
        if (!left_.is_object()) {
            refuse_file(name_, "not a record");
        }
    }

    std::string text(const char* key) {
        const Json value = take(key);
        return value.is_string() ? value.get<std::string>() : wrong<std::string>(key);
    }
    bool flag(const char* key) {
        const Json value = take(key);
        return value.is_boolean() ? value.get<bool>() : wrong<bool>(key);
    }
    template <typename Integer>
    Integer number(const char* key) {
        const Json value = take(key);
        if (value.is_number_unsigned() &&
            value.get<uint64_t>() <= uint64_t(std::numeric_limits<Integer>::max())) {
            return value.get<Integer>();
        }
        // Times before 1970.
        if (std::is_signed_v<Integer> && value.is_number_integer() && !value.is_number_unsigned()) {
            return value.get<Integer>();
        }
        return wrong<Integer>(key);
    }
    // null where it is not set
    Json take(const char* key) {
        const auto found = left_.find(key);
        if (found == left_.end()) {
            return wrong<Json>(key);
        }
        Json value = std::move(*found);
        left_.erase(found);
        return value;
    }
    void end() {
        if (!left_.empty()) {
            wrong<bool>(left_.begin().key());
        }
    }

private:
    template <typename Value>
    Value wrong(const std::string& key) {
        refuse_file(name_, fmt::format("'{}' is missing, unknown or of the wrong type", key));
    }

    Json left_;
    const std::string& name_;
};

Json to_json(const ForwardTarget& target) {
    return {{"host", target.host},
            {"port", target.port},
            {"psk_user", target.psk_user},
            {"key_file", target.key_file},
            {"uri", target.uri},
            {"socket", target.socket}};
}

ForwardTarget forward_of(const Json& json, const std::string& name) {
    Fields fields(json, name);
    ForwardTarget target;
    target.host = fields.text("host");
    target.port = fields.number<uint16_t>("port");
    target.psk_user = fields.text("psk_user");
    target.key_file = fields.text("key_file");
    target.uri = fields.text("uri");
    target.socket = fields.text("socket");
    fields.end();
    return target;
}

Json to_json(const CleanMark& clean) {
    return {{"device", clean.device},
            {"inode", clean.inode},
            {"size", clean.size},
            {"mtime_ns", clean.mtime_ns},
            {"ctime_ns", clean.ctime_ns}};
}

CleanMark clean_of(const Json& json, const std::string& name) {
    Fields fields(json, name);
    CleanMark clean;
    clean.device = fields.number<uint64_t>("device");
    clean.inode = fields.number<uint64_t>("inode");
    clean.size = fields.number<uint64_t>("size");
    clean.mtime_ns = fields.number<int64_t>("mtime_ns");
    clean.ctime_ns = fields.number<int64_t>("ctime_ns");
    fields.end();
    return clean;
}

Json to_json(const Record& record) {
    Json tombstones = Json::array();
    for (const Tombstone& tombstone : record.tombstones) {
        tombstones.push_back(
            {{"migration", tombstone.migration}, {"refusal_token", tombstone.refusal_token}});
    }
    return {{"uuid", record.uuid},
            {"generation", record.generation},
            {"role", to_string(record.role)},
            {"stage", to_string(record.stage)},
            {"migration", record.migration},
            {"stream_counter", record.stream_counter},
            {"quiesce", record.quiesce},
            {"token", record.token},
            {"token_hash", record.token_hash},
            {"handover_lsn", record.handover.v},
            {"refusal_hash", record.refusal_hash},
            {"forward", record.forward ? to_json(*record.forward) : Json()},
            {"refusal_token", record.refusal_token},
            {"largest_stream",
             {record.largest_stream.generation,
              record.largest_stream.counter,
              record.largest_stream.session}},
            {"consistent", record.consistent},
            {"tombstones", tombstones},
            {"may_have_run", record.may_have_run},
            {"machine_id", record.machine_id},
            {"inode", record.inode},
            {"fenced_image", record.fenced_image},
            {"fenced_mode", record.fenced_mode},
            {"clean", record.clean ? to_json(*record.clean) : Json()},
            {"version", record.version},
            {"marked", record.marked}};
}

StreamId stream_of(const Json& json, const std::string& name) {
    if (!json.is_array() || json.size() != 3 || !json[0].is_number_unsigned() ||
        !json[1].is_number_unsigned() || !json[2].is_number_unsigned()) {
        refuse_file(name, "'largest_stream' is not three numbers");
    }
    return {json[0].get<uint64_t>(), json[1].get<uint64_t>(), json[2].get<uint64_t>()};
}

std::vector<Tombstone> tombstones_of(const Json& json, const std::string& name) {
    if (!json.is_array() || json.size() > max_tombstones) {
        refuse_file(name, "'tombstones' is not a list of a possible length");
    }
    std::vector<Tombstone> tombstones;
    for (const Json& entry : json) {
        Fields fields(entry, name);
        tombstones.push_back({fields.text("migration"), fields.text("refusal_token")});
        fields.end();
    }
    return tombstones;
}

Record record_of(const Json& json, const std::string& name) {
    Fields fields(json, name);
    Record record;
    record.uuid = fields.text("uuid");
    record.generation = fields.number<uint64_t>("generation");
    const auto role = parse_role(fields.text("role"));
    const auto stage = parse_stage(fields.text("stage"));
    if (!role || !stage || !is_possible(*role, *stage)) {
        refuse_file(name, "its role and stage are not possible");
    }
    record.role = *role;
    record.stage = *stage;
    record.migration = fields.text("migration");
    record.stream_counter = fields.number<uint64_t>("stream_counter");
    record.quiesce = fields.text("quiesce");
    record.token = fields.text("token");
    record.token_hash = fields.text("token_hash");
    record.handover = Lsn(fields.number<uint64_t>("handover_lsn"));
    record.refusal_hash = fields.text("refusal_hash");
    if (const Json forward = fields.take("forward"); !forward.is_null()) {
        record.forward = forward_of(forward, name);
    }
    record.refusal_token = fields.text("refusal_token");
    record.largest_stream = stream_of(fields.take("largest_stream"), name);
    record.consistent = fields.flag("consistent");
    record.tombstones = tombstones_of(fields.take("tombstones"), name);
    record.may_have_run = fields.flag("may_have_run");
    record.machine_id = fields.text("machine_id");
    record.inode = fields.number<uint64_t>("inode");
    record.fenced_image = fields.text("fenced_image");
    record.fenced_mode = fields.number<uint32_t>("fenced_mode");
    if (const Json clean = fields.take("clean"); !clean.is_null()) {
        record.clean = clean_of(clean, name);
    }
    record.version = fields.number<uint64_t>("version");
    record.marked = fields.number<uint64_t>("marked");
    fields.end();
    return record;
}

} // namespace

std::string serialize_record(const Record& record) {
    // A path may hold any bytes but a JSON string may not: those are refused here, as a usage
    // error, rather than replaced.
    std::string body;
    try {
        body = to_json(record).dump(2) + "\n";
    } catch (const Json::exception&) {
        throw Error(ErrorKind::usage,
                    "the path of the image or of the forward target is not UTF-8: rename it");
    }
    return fmt::format("{}{} {}\n{}", magic, format, sha256_hex(body), body);
}

Record parse_record(std::string_view bytes, const std::string& name) {
    const size_t newline = bytes.find('\n');
    std::string_view head = bytes.substr(0, newline);
    if (newline == std::string_view::npos || head.substr(0, magic.size()) != magic) {
        refuse_file(name, bytes.empty() ? "empty" : "not a record of drover");
    }
    head.remove_prefix(magic.size());
    const size_t space = head.find(' ');
    const std::string_view number = head.substr(0, space);
    if (space == std::string_view::npos || number.empty() || number.size() > 6 ||
        number.find_first_not_of("0123456789") != std::string_view::npos) {
        refuse_file(name, "damaged (its first line)");
    }
    if (number != fmt::format("{}", format)) {
        throw Error(ErrorKind::refused,
                    fmt::format("{}: of format {}, this drover knows format {}: use the drover "
                                "that wrote it. Nothing was changed",
                                name,
                                number,
                                format));
    }
    const std::string_view body = bytes.substr(newline + 1);
    if (head.substr(space + 1) != sha256_hex(body)) {
        refuse_file(name, "damaged (its checksum is wrong)");
    }
    const Json json = Json::parse(body, nullptr, false);
    if (json.is_discarded()) {
        refuse_file(name, "damaged (not JSON)");
    }
    return record_of(json, name);
}

} // namespace drover
