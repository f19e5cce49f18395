// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/command_template.h"

#include <algorithm>
#include <charconv>
#include <functional>

namespace drover {
namespace {

// The text for a placeholder; throws Error(usage) where there is none.
using Lookup = std::function<std::string(const std::string& name)>;

[[noreturn]] void bad(const std::string& what) {
    throw Error(ErrorKind::usage, what);
}

std::string expand_word(const std::string& word, const Lookup& lookup) {
    std::string text;
    for (size_t i = 0; i < word.size();) {
        const char c = word[i];
        const bool doubled = i + 1 < word.size() && word[i + 1] == c;
        if ((c == '{' || c == '}') && doubled) {
            text += c;
            i += 2;
        } else if (c == '}') {
            bad(fmt::format("\"{}\": a single '}}': write '}}}}' for a brace", word));
        } else if (c != '{') {
            text += c;
            ++i;
        } else {
            const size_t end = word.find('}', i);
            if (end == std::string::npos) {
                bad(fmt::format("\"{}\": '{{' without '}}': write '{{{{' for a brace", word));
            }
            text += lookup(word.substr(i + 1, end - i - 1));
            i = end + 1;
        }
    }
    return text;
}

// "disk.3.name" to 3 and "name".
struct Numbered {
    size_t index = 0;
    std::string field;
};

std::optional<Numbered> numbered(const std::string& name, const char* kind) {
    const std::string prefix = std::string(kind) + ".";
    if (!name.starts_with(prefix)) {
        return std::nullopt;
    }
    Numbered found;
    const char* const last = name.data() + name.size();
    const auto [end, error] = std::from_chars(name.data() + prefix.size(), last, found.index);
    if (error != std::errc{} || end == last || *end != '.') {
        return std::nullopt;
    }
    found.field.assign(end + 1, last);
    return found;
}

bool disk_field(const std::string& field) {
    return field == "name" || field == "socket";
}
bool nic_field(const std::string& field) {
    return field == "mac" || field == "bridge";
}

std::string disk_value(const CommandValues& values, size_t index, const std::string& field) {
    if (index >= values.disks.size()) {
        bad(fmt::format("the command asks for disk {}, counted from 0: the VM has {}",
                        index,
                        values.disks.size()));
    }
    return field == "name" ? values.disks[index].name : values.disks[index].socket;
}

std::string nic_value(const CommandValues& values, size_t index, const std::string& field) {
    if (index >= values.nics.size()) {
        bad(fmt::format("the command asks for NIC {}, counted from 0: the VM has {}",
                        index,
                        values.nics.size()));
    }
    const NicSpec& nic = values.nics[index];
    if (field == "bridge" && nic.bridge.empty()) {
        bad(fmt::format("the command asks for the bridge of NIC {}: the VM file names none",
                        nic.mac));
    }
    return field == "mac" ? nic.mac : nic.bridge;
}

std::string value_of(const CommandValues& values, const std::string& name) {
    if (name == "vm") {
        return values.vm;
    }
    if (name == "qmp") {
        return values.qmp;
    }
    if (const auto disk = numbered(name, "disk"); disk && disk_field(disk->field)) {
        return disk_value(values, disk->index, disk->field);
    }
    if (const auto nic = numbered(name, "nic"); nic && nic_field(nic->field)) {
        return nic_value(values, nic->index, nic->field);
    }
    const auto found = values.values.find(name);
    if (found == values.values.end()) {
        bad(fmt::format("the command asks for '{}': the VM file does not say it", name));
    }
    return found->second;
}

// The words of a group for member `index`, with "{KIND.FIELD}" meaning that member's.
void append_group(std::vector<std::string>& argv,
                  const std::vector<std::string>& words,
                  const CommandValues& values,
                  const std::string& kind,
                  size_t index) {
    const Lookup lookup = [&](const std::string& name) {
        if (name == kind + ".index") {
            return std::to_string(index);
        }
        if (name.starts_with(kind + ".") && !numbered(name, kind.c_str())) {
            return value_of(values,
                            fmt::format("{}.{}.{}", kind, index, name.substr(kind.size() + 1)));
        }
        return value_of(values, name);
    };
    for (const std::string& word : words) {
        argv.push_back(expand_word(word, lookup));
    }
}

bool known_placeholder(const std::string& name,
                       TemplateGroup group,
                       const std::map<std::string, std::string>& values) {
    const auto disk = numbered(name, "disk");
    const auto nic = numbered(name, "nic");
    if (name == "vm" || name == "qmp" || values.contains(name) ||
        (disk && disk_field(disk->field)) || (nic && nic_field(nic->field))) {
        return true;
    }
    const auto member = [&name](const char* kind, bool (*field)(const std::string&)) {
        const std::string prefix = std::string(kind) + ".";
        return name.starts_with(prefix) &&
               (name.substr(prefix.size()) == "index" || field(name.substr(prefix.size())));
    };
    return (group == TemplateGroup::disk && member("disk", disk_field)) ||
           (group == TemplateGroup::nic && member("nic", nic_field));
}

} // namespace

std::vector<std::string> expand_command(const HypervisorTemplate& hypervisor,
                                        const CommandValues& values) {
    std::vector<std::string> argv;
    const auto disks = [&] {
        for (size_t i = 0; i < values.disks.size(); ++i) {
            append_group(argv, hypervisor.disk_arguments, values, "disk", i);
        }
    };
    const auto nics = [&] {
        for (size_t i = 0; i < values.nics.size(); ++i) {
            append_group(argv, hypervisor.nic_arguments, values, "nic", i);
        }
    };
    const Lookup lookup = [&](const std::string& name) { return value_of(values, name); };
    bool disks_placed = false, nics_placed = false;
    for (const std::string& word : hypervisor.command) {
        if (word == "{disks}") {
            disks();
            disks_placed = true;
        } else if (word == "{nics}") {
            nics();
            nics_placed = true;
        } else {
            argv.push_back(expand_word(word, lookup));
        }
    }
    if (!disks_placed) {
        disks();
    }
    if (!nics_placed) {
        nics();
    }
    return argv;
}

std::string expand_nic_word(const std::string& word, const CommandValues& values, size_t index) {
    std::vector<std::string> expanded;
    append_group(expanded, {word}, values, "nic", index);
    return expanded.front();
}

std::optional<std::string> template_error(const std::vector<std::string>& words,
                                          TemplateGroup group,
                                          const std::map<std::string, std::string>& values) {
    const Lookup lookup = [&](const std::string& name) -> std::string {
        if (!known_placeholder(name, group, values)) {
            bad(fmt::format("'{{{}}}' is no placeholder here: see PLACEHOLDERS in drover.toml(5)",
                            name));
        }
        return "";
    };
    for (const char* marker : {"{disks}", "{nics}"}) {
        if (group == TemplateGroup::command && std::count(words.begin(), words.end(), marker) > 1) {
            return fmt::format("\"{}\" may be there once", marker);
        }
    }
    try {
        for (const std::string& word : words) {
            const bool marker =
                group == TemplateGroup::command && (word == "{disks}" || word == "{nics}");
            if (!marker) {
                expand_word(word, lookup);
            }
        }
    } catch (const Error& error) {
        return error.what();
    }
    return std::nullopt;
}

} // namespace drover
