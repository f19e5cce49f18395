// SPDX-License-Identifier: GPL-2.0-or-later
// The files of a disk's process.
#pragma once

#include "common/privilege.h"
#include "nbd-proxy/disk_context.h"

namespace drover {

// All that the process still opens, makes, renames or removes once the engine has opened the disk:
// its image (where it is now; "": it has none), its state directory, its control socket ("": none),
// and what libraries read on their own. Throws std::bad_alloc.
FileAccess
files_of_disk(const EngineOptions& options, const std::string& image, const std::string& control);

} // namespace drover
