// SPDX-License-Identifier: GPL-2.0-or-later
// What of a migration's options can be told to be wrong before anything is looked at.
#pragma once

#include "migrator/cli.h"

namespace drover {

// Throws Error(usage).
void check_options(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options);
// The part of it that may change while the migration runs. Throws the same.
void check_downtime(const SiteConfig& site, uint64_t downtime_ms);

} // namespace drover
