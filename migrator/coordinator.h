// SPDX-License-Identifier: GPL-2.0-or-later
// `drover migrate` and `drover verify`: the source's side of a migration.
#pragma once

#include "migrator/cli.h"
#include "migrator/config.h"

namespace drover {

// Each runs to its end on the calling thread, with an event loop of its own, and returns
// the exit status (cli.h). Messages go to stderr; progress and the report to stdout. SIGINT
// and SIGTERM abort a migration that has not fenced its first disk. SIGPIPE is ignored from
// then on. Nothing is thrown.
//
// While a migration runs, paths().migrate_socket(VM) answers JSON-RPC: `abort` {}, `status` {},
// `set` {"downtime_ms", "max_bandwidth"} (docs/control.md).
int run_migrate(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options);

// Compares the disks with the other side's, block by block, by hash.
int run_verify(const SiteConfig& site, const VmFile& vm, const VerifyOptions& options);

} // namespace drover
