// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/agent_params.h"

#include "migrator/vm_file.h"

namespace drover {

using rpc::Json;

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

} // namespace drover
