// SPDX-License-Identifier: GPL-2.0-or-later
// Any line that an agent answers or tells: it is read as every answer that it could be, and is an
// Error(peer), or Error(refused) of another protocol, or what comes of it is within bounds. The
// first byte chooses which one is asked for.
#include "migrator/agent_answers.h"
#include "test/fuzz/check.h"

#include <algorithm>

using namespace drover;
using rpc::Json;

namespace {

const DiskNames disks{"root", "data"};

bool is_key(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

void check_port(const DataPort& where) {
    FUZZ_CHECK(where.port != 0 && !where.psk_user.empty() && where.psk_user.size() <= 64);
    FUZZ_CHECK(where.psk_user.find_first_of(":\n \t") == std::string::npos);
}

constexpr size_t longest_text = 2003;

void check_text(const std::string& text, size_t longest) {
    FUZZ_CHECK(text.size() <= longest);
    FUZZ_CHECK(std::none_of(text.begin(), text.end(), [](char c) {
        return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    }));
}

void check_standings(const std::vector<DiskStanding>& standings) {
    FUZZ_CHECK(standings.size() == disks.size());
    for (const DiskStanding& one : standings) {
        FUZZ_CHECK(one.generation + 2 > one.generation);
    }
}

void check_answer(uint8_t which, const Json& answer) {
    switch (which % 16) {
    case 0:
        read_hello(answer, 2, "b");
        break;
    case 1:
        FUZZ_CHECK(read_check(answer, 5) <= 5 + (uint64_t{1} << 32));
        break;
    case 2: {
        const Prepared prepared = read_prepare(answer, disks, which >= 128);
        FUZZ_CHECK(prepared.disks.size() == disks.size());
        FUZZ_CHECK(prepared.memory.has_value() == (which >= 128));
        for (const PreparedDisk& disk : prepared.disks) {
            check_port(disk.at);
            FUZZ_CHECK(is_key(disk.refusal_hash));
        }
        break;
    }
    case 3:
        check_standings(read_standings(answer, "take_over", disks));
        break;
    case 4:
        FUZZ_CHECK(read_refuse(answer, disks).size() == disks.size());
        break;
    case 5:
        for (const ForwardKey& key : read_forward_key(answer, disks)) {
            check_port(key.at);
            FUZZ_CHECK(is_key(key.psk_key));
        }
        break;
    case 7:
        if (which >= 128) {
            FUZZ_CHECK(read_segment(answer, {"02:00:00:00:00:10"}).size() == 1);
            break;
        }
        for (const DataPort& port : read_tunnel(answer, {"02:00:00:00:00:10"})) {
            check_port(port);
        }
        read_at_home(answer);
        break;
    case 10:
        if (const MemoryAgain again = read_memory_again(answer); again.wait == MemoryWait::waits) {
            check_port(again.at);
        }
        break;
    case 8: {
        const Survey survey = read_survey(answer);
        FUZZ_CHECK(survey.findings.size() <= 100 && survey.cpu.flags.size() <= 2000);
        for (const Finding& finding : survey.findings) {
            check_text(finding.about + finding.text + finding.advice, 3 * longest_text);
        }
        break;
    }
    case 9: {
        const ProbePorts ports = read_probe(answer, 2, 1);
        FUZZ_CHECK(ports.tcp.size() == 2 && ports.udp.size() == 1);
        break;
    }
    case 6:
        for (const DataPort& port : read_hashes(answer, disks)) {
            check_port(port);
        }
        break;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    rpc::Message message;
    try {
        message = rpc::parse({reinterpret_cast<const char*>(data) + 1, size - 1});
    } catch (const Error&) {
        return 0; // json_rpc_fuzz.cpp
    }
    if (const auto* const request = std::get_if<rpc::Request>(&message)) {
        check_text(read_notice(*request).text, longest_text);
        return 0;
    }
    try {
        check_answer(data[0], std::get<rpc::Response>(message).result);
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::peer || error.kind() == ErrorKind::refused);
    }
    return 0;
}
