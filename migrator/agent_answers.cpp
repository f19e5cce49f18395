// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_answers.h"

#include <algorithm>

namespace drover {
namespace {

using rpc::Json;

constexpr uint64_t largest_lead = uint64_t{1} << 32;
// A generation can always be raised.
constexpr uint64_t largest_generation = uint64_t{1} << 62;
constexpr size_t longest_user = 64, longest_token = 128, longest_text = 2000;
constexpr size_t key_digits = 64;
constexpr size_t most_findings = 100, most_flags = 2000, longest_flag = 40;

// One object of an answer.
class Reader {
public:
    Reader(const Json& object, const char* method, std::string about = "")
        : object_(object), method_(method), about_(std::move(about)) {
        if (!object.is_object()) {
            throw Error(ErrorKind::peer,
                        fmt::format("the agent's answer to `{}` is no object{}", method, about_));
        }
    }

    const Json& at(const char* key) const {
        const auto found = object_.find(key);
        if (found == object_.end()) {
            fail(key);
        }
        return *found;
    }
    uint64_t number(const char* key, uint64_t least, uint64_t most) const {
        const Json& value = at(key);
        if (!value.is_number_unsigned() || value.get<uint64_t>() < least ||
            value.get<uint64_t>() > most) {
            fail(key);
        }
        return value.get<uint64_t>();
    }
    bool flag(const char* key) const {
        const Json& value = at(key);
        if (!value.is_boolean()) {
            fail(key);
        }
        return value.get<bool>();
    }
    std::string text(const char* key, size_t longest) const {
        const Json& value = at(key);
        if (!value.is_string() || value.get_ref<const std::string&>().size() > longest) {
            fail(key);
        }
        return value.get<std::string>();
    }
    std::string hexadecimal(const char* key) const {
        std::string digits = text(key, key_digits);
        if (digits.size() != key_digits ||
            digits.find_first_not_of("0123456789abcdef") != std::string::npos) {
            fail(key);
        }
        return digits;
    }
    DataPort data_port() const {
        DataPort where;
        where.port = static_cast<uint16_t>(number("port", 1, UINT16_MAX));
        where.psk_user = text("psk_user", longest_user);
        const auto plain = [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                   c == '-' || c == '_' || c == '.';
        };
        // It goes into the lines of key files.
        if (where.psk_user.empty() ||
            !std::all_of(where.psk_user.begin(), where.psk_user.end(), plain)) {
            fail("psk_user");
        }
        return where;
    }
    // Of its list `disks`: one entry for each name.
    std::vector<Reader> disks(const DiskNames& names) const {
        return entries("disks", "disk", names);
    }
    // The same of a list of things that are named otherwise.
    std::vector<Reader>
    entries(const char* key, const char* kind, const std::vector<std::string>& names) const {
        const Json& list = at(key);
        std::vector<Reader> found;
        for (const std::string& name : names) {
            found.emplace_back(
                entry(list, kind, name), method_, fmt::format(" ({} {})", kind, name));
        }
        return found;
    }
    const Json& json() const { return object_; }
    const Json& list(const char* key, size_t most) const {
        const Json& value = at(key);
        if (!value.is_array() || value.size() > most) {
            fail(key);
        }
        return value;
    }
    std::vector<uint16_t> ports(const char* key, size_t count) const {
        std::vector<uint16_t> found;
        for (const Json& port : list(key, count)) {
            if (!port.is_number_unsigned() || port == 0U || port.get<uint64_t>() > UINT16_MAX) {
                fail(key);
            }
            found.push_back(port.get<uint16_t>());
        }
        if (found.size() != count) {
            fail(key);
        }
        return found;
    }
    Finding finding() const {
        const auto level = parse_level(text("level", longest_text));
        if (!level) {
            fail("level");
        }
        return {*level,
                printable(text("about", longest_text)),
                printable(text("text", longest_text)),
                printable(text("advice", longest_text))};
    }

private:
    [[noreturn]] void fail(const char* key) const {
        throw Error(
            ErrorKind::peer,
            fmt::format(
                "the agent's answer to `{}` lacks '{}', or it is wrong{}", method_, key, about_));
    }
    const Json& entry(const Json& list, const char* kind, const std::string& name) const {
        if (list.is_array()) {
            for (const Json& one : list) {
                const auto said = one.is_object() ? one.find("name") : one.end();
                if (one.is_object() && said != one.end() && *said == name) {
                    return one;
                }
            }
        }
        throw Error(
            ErrorKind::peer,
            fmt::format("the agent's answer to `{}` leaves out {} {}", method_, kind, name));
    }

    const Json& object_;
    const char* method_;
    std::string about_;
};

} // namespace

DiskStanding standing_of(const Json& status) {
    const auto value = [&status](const char* key) {
        const auto found = status.is_object() ? status.find(key) : status.end();
        return status.is_object() && found != status.end() ? *found : Json();
    };
    const auto text = [&value](const char* key) {
        const Json said = value(key);
        return said.is_string() ? said.get<std::string>() : std::string();
    };
    const auto role = parse_role(text("role"));
    const auto stage = parse_stage(text("stage"));
    const Json generation = value("generation");
    if (!role || !stage || !generation.is_number_unsigned() ||
        generation.get<uint64_t>() > largest_generation) {
        throw Error(ErrorKind::peer, "a disk's status lacks its role, stage or generation");
    }
    DiskStanding standing;
    standing.role = *role;
    standing.stage = *stage;
    standing.generation = generation.get<uint64_t>();
    standing.migration = text("migration");
    const Json clients = value("clients");
    standing.may_have_run = value("may_have_run") != Json(false);
    standing.in_use = !clients.is_null() && clients != Json(0);
    return standing;
}

void read_hello(const Json& answer, uint64_t protocol, const std::string& host) {
    const Reader hello(answer, "hello");
    if (hello.at("version") == protocol) {
        return;
    }
    throw Error(ErrorKind::refused,
                fmt::format("the agent at {} speaks another protocol: its drover is {}, this one "
                            "{}",
                            host,
                            read_program_version(answer),
                            DROVER_VERSION));
}

std::string read_program_version(const Json& hello) {
    const auto program = hello.find("program_version");
    return program != hello.end() && program->is_string() ? printable(program->get<std::string>())
                                                          : "?";
}

uint64_t read_check(const Json& answer, uint64_t ours) {
    return Reader(answer, "check").number("generation", 0, ours + largest_lead);
}

bool read_at_home(const Json& answer) {
    return Reader(answer, "check").flag("at_home");
}

std::vector<bool> read_segment(const Json& answer, const std::vector<std::string>& macs) {
    std::vector<bool> answered;
    for (const Reader& nic : Reader(answer, "segment").entries("nics", "NIC", macs)) {
        answered.push_back(nic.flag("answered"));
    }
    return answered;
}

Survey read_survey(const Json& answer) {
    const Reader reader(answer, "survey");
    Survey survey;
    for (const Json& entry : reader.list("findings", most_findings)) {
        survey.findings.push_back(Reader(entry, "survey", " (a finding)").finding());
    }
    survey.at_home = reader.flag("at_home");
    survey.kvm = reader.flag("kvm");
    const Reader cpu(reader.at("cpu"), "survey", " (cpu)");
    survey.cpu.model = printable(cpu.text("model", longest_text));
    for (const Json& flag : cpu.list("flags", most_flags)) {
        if (flag.is_string() && flag.get_ref<const std::string&>().size() <= longest_flag) {
            survey.cpu.flags.insert(flag.get<std::string>());
        }
    }
    return survey;
}

ProbePorts read_probe(const Json& answer, size_t tcp, size_t udp) {
    const Reader reader(answer, "probe");
    return {reader.ports("tcp", tcp), reader.ports("udp", udp)};
}

std::vector<DataPort> read_tunnel(const Json& answer, const std::vector<std::string>& macs) {
    std::vector<DataPort> ports;
    for (const Reader& nic : Reader(answer, "tunnel").entries("nics", "NIC", macs)) {
        ports.push_back(nic.data_port());
    }
    return ports;
}

MemoryAgain read_memory_again(const Json& answer) {
    if (answer == Json{{"gone", true}}) {
        return {MemoryWait::gone, {}};
    }
    if (answer == Json{{"whole", true}}) {
        return {MemoryWait::whole, {}};
    }
    return {MemoryWait::waits, Reader(answer, "memory_again").data_port()};
}

Prepared read_prepare(const Json& answer, const DiskNames& disks, bool with_memory) {
    const Reader reader(answer, "prepare");
    Prepared prepared;
    for (const Reader& disk : reader.disks(disks)) {
        prepared.disks.push_back(
            {disk.data_port(), disk.hexadecimal("refusal_hash"), disk.flag("empty")});
    }
    if (with_memory) {
        prepared.memory = Reader(reader.at("memory"), "prepare", " (memory)").data_port();
    }
    return prepared;
}

std::vector<DiskStanding>
read_standings(const Json& answer, const char* method, const DiskNames& disks) {
    std::vector<DiskStanding> standings;
    for (const Reader& disk : Reader(answer, method).disks(disks)) {
        standings.push_back(standing_of(disk.json()));
    }
    return standings;
}

std::vector<std::string> read_refuse(const Json& answer, const DiskNames& disks) {
    const Reader reader(answer, "refuse");
    if (reader.at("disks") == Json::array()) { // nothing was prepared there
        return std::vector<std::string>(disks.size());
    }
    std::vector<std::string> tokens;
    for (const Reader& disk : reader.disks(disks)) {
        tokens.push_back(disk.text("refusal_token", longest_token));
    }
    return tokens;
}

std::vector<ForwardKey> read_forward_key(const Json& answer, const DiskNames& disks) {
    std::vector<ForwardKey> keys;
    for (const Reader& disk : Reader(answer, "forward_key").disks(disks)) {
        keys.push_back({disk.data_port(), disk.hexadecimal("psk_key")});
    }
    return keys;
}

std::vector<DataPort> read_hashes(const Json& answer, const DiskNames& disks) {
    std::vector<DataPort> ports;
    for (const Reader& disk : Reader(answer, "hashes").disks(disks)) {
        ports.push_back(disk.data_port());
    }
    return ports;
}

AgentNotice read_notice(const rpc::Request& notification) {
    const auto text = [&notification](const char* key) {
        const auto found = notification.params.find(key);
        return found != notification.params.end() && found->is_string() ? found->get<std::string>()
                                                                        : std::string();
    };
    AgentNotice notice;
    if (notification.method == "log") {
        notice.kind = AgentNotice::Kind::log;
        notice.level = text("level");
        if (notice.level != "warning" && notice.level != "error") {
            notice.level = "info";
        }
        notice.text = printable(text("text"));
    } else if (notification.method == "event") {
        notice.kind = AgentNotice::Kind::event;
        const std::string detail = text("detail");
        notice.text = printable(detail.empty() ? text("text") : detail);
    }
    return notice;
}

std::string printable(std::string text) {
    if (text.size() > longest_text) {
        text.resize(longest_text);
        while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) {
            text.pop_back(); // a character is whole, or not there
        }
        if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xC0) {
            text.pop_back();
        }
        text += "...";
    }
    for (size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const bool c1 =
            byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
        if (byte < 0x20 || byte == 0x7F) {
            text[i] = ' ';
        } else if (c1) { // as ESC [ in one character
            text[i] = text[i + 1] = ' ';
        }
    }
    return text;
}

} // namespace drover
