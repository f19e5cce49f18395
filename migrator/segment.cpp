// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/segment.h"

#include "common/process.h"
#include "migrator/paths.h"
#include "migrator/tunnels.h"

#include <algorithm>
#include <filesystem>

#include <fmt/format.h>

#include <net/if.h>

namespace drover {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr milliseconds answer_patience{1500};
constexpr milliseconds hearing_patience{500}; // it was sent before the answer to us
constexpr milliseconds stop_patience{10000};

tunnel::Nic nic_of(const NicSpec& spec) {
    tunnel::Nic nic;
    nic.mac = tunnel::parse_mac(spec.mac).value();
    for (const std::string& address : spec.addresses) {
        nic.addresses.push_back(tunnel::parse_prefix(address).value());
    }
    return nic;
}

} // namespace

std::vector<NicSpec> addressed(const std::vector<NicSpec>& nics) {
    std::vector<NicSpec> found;
    std::copy_if(nics.begin(), nics.end(), std::back_inserter(found), [](const NicSpec& nic) {
        return !nic.addresses.empty();
    });
    return found;
}

SegmentWatch::SegmentWatch(const std::vector<NicSpec>& nics) {
    for (const NicSpec& nic : nics) {
        watches_.emplace_back(home_bridge(nic));
    }
}

std::vector<bool> SegmentWatch::heard(const tunnel::Nonce& nonce) {
    std::vector<bool> found;
    for (tunnel::NonceWatch& watch : watches_) {
        found.push_back(watch.heard(nonce, hearing_patience));
    }
    return found;
}

std::vector<bool> ask_for_vm(const std::vector<NicSpec>& nics, const tunnel::Nonce& nonce) {
    std::vector<bool> answered;
    for (const NicSpec& nic : nics) {
        answered.push_back(tunnel::vm_answers(nic.bridge, nic_of(nic), nonce, answer_patience));
    }
    return answered;
}

void require_bridges(const std::vector<NicSpec>& nics) {
    for (const NicSpec& nic : nics) {
        if (::if_nametoindex(nic.bridge.c_str()) == 0) {
            throw Error(ErrorKind::refused,
                        fmt::format("NIC {}: there is no '{}' here", nic.mac, nic.bridge));
        }
    }
}

NetworkChoice choose_network(const std::vector<NicSpec>& nics, const SegmentEvidence& evidence) {
    size_t same = 0;
    for (size_t i = 0; i < nics.size(); ++i) {
        const tunnel::Segment segment =
            tunnel::judge_segment(evidence.heard.at(i), evidence.answered.at(i));
        if (segment == tunnel::Segment::unclear) {
            throw Error(
                ErrorKind::usage,
                fmt::format("NIC {}: {}: set network.mode to \"stretched\", \"tunnel\" or \"none\"",
                            nics[i].mac,
                            evidence.heard[i]
                                ? "both sites are one segment, but the VM does not answer at "
                                  "the destination"
                                : "at the destination an answer of its MAC and address is "
                                  "heard, but what asked for it does not come to the VM's "
                                  "bridge here: there is another one of it, or something "
                                  "answers for it"));
        }
        same += segment == tunnel::Segment::same ? 1 : 0;
    }
    if (same != 0 && same != nics.size()) {
        throw Error(ErrorKind::usage,
                    fmt::format("{} of {} NICs are on a segment that both sites have: no "
                                "network.mode is right for all of them but \"none\"",
                                same,
                                nics.size()));
    }
    return same != 0 ? NetworkChoice{true, "the VM answers here what the destination asks there"}
                     : NetworkChoice{false, "neither site hears the other one on the VM's segment"};
}

void start_announcers(const std::string& vm, const std::vector<NicSpec>& nics) {
    for (size_t i = 0; i < nics.size(); ++i) {
        if (nics[i].addresses.empty()) {
            continue;
        }
        SpawnOptions options;
        options.argv = {paths().tunnel,
                        "announce",
                        Paths::tunnel_name(vm, i),
                        "--bridge",
                        nics[i].bridge,
                        "--mac",
                        nics[i].mac};
        for (const std::string& address : nics[i].addresses) {
            options.argv.insert(options.argv.end(), {"--address", address});
        }
        options.env = {{"DROVER_RUN", paths().run}};
        options.log_file = paths().tunnel_log(vm);
        options.detached = true;
        spawn(options);
    }
}

void stop_announcers(const std::string& vm) {
    for (const std::string& name : nic_folders(vm)) {
        const std::string control = paths().announcer_control(name);
        std::error_code ignored;
        if (!fs::exists(control, ignored)) {
            continue;
        }
        const RunResult result = run_command({paths().tunnel, "announce", name, "--stop"},
                                             {{"DROVER_RUN", paths().run}},
                                             stop_patience);
        if (!result.status.success()) {
            throw Error(ErrorKind::io, fmt::format("announcing {}: {}", name, result.output));
        }
        fs::remove(fs::path(control).parent_path(), ignored); // if it is empty
    }
}

} // namespace drover
