// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/qemu_blocks.h"

#include <algorithm>

#include <fmt/format.h>

namespace drover::qemu {
namespace {

using Json = nlohmann::json;

std::string text(const Json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// What people know it by.
std::string label_of(const Json& block) {
    const std::string device = text(block, "device");
    return device.empty() ? text(block, "qdev") : device;
}

// The socket as a whole word of QEMU's file name, "nbd+unix://?socket=PATH" or a JSON text.
bool names(const Json& inserted, const std::string& socket) {
    const Json image = inserted.value("image", Json::object());
    for (const std::string& file : {text(inserted, "file"), text(image, "filename")}) {
        const size_t at = file.find(socket);
        const size_t end = at + socket.size();
        if (at != std::string::npos &&
            (end == file.size() || file[end] == '"' || file[end] == '&')) {
            return true;
        }
    }
    return false;
}

Finding left_behind(const Json& block, const Json& inserted) {
    const std::string file = text(inserted, "file");
    const std::string label = label_of(block);
    const bool local = file.starts_with('/');
    if (inserted.value("ro", false)) {
        const std::string what = local ? file : "a medium that can be read alone";
        return {Level::warning,
                "device " + label,
                fmt::format("it has {}, which does not move", what),
                block.value("removable", false)
                    ? fmt::format("take it out (`eject` of the monitor), or have the command at "
                                  "the other side give {} {} too",
                                  label,
                                  what)
                    : "have the command at the other side give it the same"};
    }
    if (label.starts_with("pflash")) {
        return {Level::warning,
                "device " + label,
                fmt::format("its content moves with the memory, and its file {} does not", file),
                "have the command at the other side give it a file of its own, of the same size"};
    }
    return {local ? Level::problem : Level::warning,
            "device " + label,
            local ? fmt::format("{} is no disk of the VM file: it would stay behind, and the VM "
                                "lose it",
                                file)
                  : fmt::format("it is not known whether it is a disk of the VM file ({})",
                                file.empty() ? text(inserted, "drv") : file),
            "serve it by drover as a [[disk]] of the VM file, or unplug it"};
}

} // namespace

Findings block_findings(const Json& blocks, const std::map<std::string, std::string>& disks) {
    Findings found;
    std::set<std::string> attached;
    for (const Json& block : blocks.is_array() ? blocks : Json::array()) {
        if (!block.is_object() || !block.value("inserted", Json()).is_object()) {
            continue; // an empty drive
        }
        const Json& inserted = block["inserted"];
        const auto disk = std::find_if(disks.begin(), disks.end(), [&](const auto& each) {
            return names(inserted, each.second);
        });
        if (disk != disks.end()) {
            attached.insert(disk->first);
        } else {
            found.push_back(left_behind(block, inserted));
        }
    }
    for (const auto& [name, socket] : disks) {
        if (!attached.contains(name)) {
            found.push_back({Level::warning,
                             "disk " + name,
                             fmt::format("no block device of QEMU is seen that has {}", socket),
                             "start the VM with that socket as its disk"});
        }
    }
    if (found.empty()) {
        found.push_back({Level::ok, "devices", "no block device would stay behind", ""});
    }
    return found;
}

bool is_host_cpu(const std::string& cpu_type) {
    return cpu_type.starts_with("host-") || cpu_type.starts_with("max-");
}

} // namespace drover::qemu
