// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_params.h"

#include "migrator/vm_file.h"

namespace drover {
namespace {

using rpc::Json;

size_t count_param(const Json& params, const char* key, uint64_t most) {
    const uint64_t count = rpc::uint_param(params, key);
    if (count > most) {
        throw Error(ErrorKind::usage, fmt::format("parameter '{}': {} at most", key, most));
    }
    return count;
}

} // namespace

std::string hex_param(const Json& params, const char* key, size_t digits) {
    std::string text = rpc::string_param(params, key);
    if (text.size() != digits || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
        throw Error(ErrorKind::usage,
                    fmt::format("parameter '{}': {} hexadecimal digits are expected", key, digits));
    }
    return text;
}

NamedDisks named_disks_param(const Json& params, bool with_uuids) {
    NamedDisks named{rpc::string_param(params, "vm"), {}};
    if (!valid_name(named.vm)) {
        throw Error(ErrorKind::usage, "parameter 'vm': a VM's name is expected");
    }
    const Json names = params.value("disks", Json());
    if (!names.is_array()) {
        throw Error(ErrorKind::usage, "parameter 'disks': an array is expected");
    }
    for (const Json& entry : names) {
        NamedDisks::Disk disk;
        if (with_uuids && entry.is_object()) {
            rpc::only_params(entry, {"name", "uuid"});
            disk = {rpc::string_param(entry, "name"), rpc::string_param(entry, "uuid")};
        } else if (!with_uuids && entry.is_string()) {
            disk.name = entry.get<std::string>();
        }
        if (!valid_name(disk.name)) {
            throw Error(ErrorKind::usage, "parameter 'disks': names of disks are expected");
        }
        named.disks.push_back(std::move(disk));
    }
    return named;
}

std::chrono::seconds patience_param(const Json& params) {
    const Json told = params.is_object() ? params.value("patience_s", Json()) : Json();
    const uint64_t seconds = told.is_number_unsigned() ? told.get<uint64_t>() : 0;
    return std::clamp(std::chrono::seconds(std::min<uint64_t>(seconds, longest_patience.count())),
                      longest_silence,
                      longest_patience);
}

std::map<std::string, uint64_t> used_param(const Json& params) {
    const Json used = params.value("used", Json::object());
    std::map<std::string, uint64_t> bytes;
    for (const auto& item : used.items()) {
        if (!used.is_object() || !item.value().is_number_unsigned()) {
            throw Error(ErrorKind::usage,
                        "parameter 'used': bytes by the names of disks are expected");
        }
        bytes[item.key()] = item.value().get<uint64_t>();
    }
    return bytes;
}

ProbeParams probe_params(const SiteConfig& site, const Json& params) {
    rpc::only_params(params, {"word", "tcp", "udp"});
    ProbeParams probe;
    probe.word = hex_param(params, "word", probe_word_digits);
    probe.tcp = count_param(params, "tcp", site.limits.disks + 1); // and the memory
    probe.udp = count_param(params, "udp", site.limits.nics);
    return probe;
}

} // namespace drover
