// SPDX-License-Identifier: GPL-2.0-or-later
// A hypervisor's command from the site's template. One template word gives one argv word, so
// that no value can add an argument; there is no shell.
//
// Placeholders: {vm}, {qmp}, {NAME} of each of the template's values; {disk.N.name},
// {disk.N.socket}, {nic.N.mac}, {nic.N.bridge} (N from 0); in disk-arguments also
// {disk.index}, {disk.name}, {disk.socket}; in nic-arguments also {nic.index}, {nic.mac},
// {nic.bridge}. "{{" and "}}" are braces. The words "{disks}" and "{nics}" of the command
// stand for the groups.
#pragma once

#include "migrator/config.h"

#include <optional>

namespace drover {

struct CommandValues {
    std::string vm;
    std::string qmp; // path of the monitor's socket
    struct Disk {
        std::string name;
        std::string socket;
    };
    std::vector<Disk> disks;
    std::vector<NicSpec> nics;
    std::map<std::string, std::string> values;
};

// Throws Error(usage) if the VM has no value for a placeholder.
std::vector<std::string> expand_command(const HypervisorTemplate& hypervisor,
                                        const CommandValues& values);

// A word about one NIC. Throws as above.
std::string expand_nic_word(const std::string& word, const CommandValues& values, size_t index);

// What is wrong with the words of one group, whatever VM comes; nullopt: nothing. For the check
// when drover.toml is read.
enum class TemplateGroup { command, disk, nic };
std::optional<std::string> template_error(const std::vector<std::string>& words,
                                          TemplateGroup group,
                                          const std::map<std::string, std::string>& values);

} // namespace drover
