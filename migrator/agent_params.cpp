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

NamedDisks named_disks_param(const Json& params) {
    NamedDisks named{rpc::string_param(params, "vm"), {}};
    if (!valid_name(named.vm)) {
        throw Error(ErrorKind::usage, "parameter 'vm': a VM's name is expected");
    }
    const Json names = params.value("disks", Json());
    if (!names.is_array()) {
        throw Error(ErrorKind::usage, "parameter 'disks': an array is expected");
    }
    for (const Json& name : names) {
        if (!name.is_string() || !valid_name(name.get<std::string>())) {
            throw Error(ErrorKind::usage, "parameter 'disks': names of disks are expected");
        }
        named.disks.push_back(name.get<std::string>());
    }
    return named;
}

} // namespace drover
