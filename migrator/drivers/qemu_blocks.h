// SPDX-License-Identifier: GPL-2.0-or-later
// Which of a QEMU's block devices a migration takes along, and which processor it has. Pure.
#pragma once

#include "migrator/finding.h"

#include <map>
#include <set>
#include <string>

namespace drover::qemu {

// blocks: what query-block returns. disks: the sockets of the VM's disks, by their names. What is
// no disk of the VM would stay behind; a medium that can be read alone is needed there too.
Findings block_findings(const nlohmann::json& blocks,
                        const std::map<std::string, std::string>& disks);

// cpu_type: the QOM type of a processor. "host" and "max" have what the host's processor has.
bool is_host_cpu(const std::string& cpu_type);

} // namespace drover::qemu
