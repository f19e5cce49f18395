// SPDX-License-Identifier: GPL-2.0-or-later
// `drover recover`, by hand and by itself.
#pragma once

#include "migrator/cli.h"
#include "migrator/run_lock.h"
#include "migrator/source_recovery.h"

#include <functional>

namespace drover {

// On the calling thread, with an event loop of its own; the exit status. Throws Error.
int run_recover(const SiteConfig& site,
                const std::string& name_or_path,
                const RecoverOptions& options);

// What migrate and serve do first, under the lock: a migration from here that has not come to its
// end is brought there. nullopt: there was none, or the VM goes on here; else the exit status to
// end with.
std::optional<int> recover_at_start(const SiteConfig& site, const VmFile& vm);

// What serve does when the disks are served, and, where a migration has left replicas, before they
// are: nullopt where the VM may use them, also where a coordinator or another recovery is at work;
// else the exit status to end with.
std::optional<int> recover_served(const SiteConfig& site, const VmFile& vm);

// For the guardian: nullopt if somebody else is at it, or `migration` is not the one to recover any
// more.
std::optional<SourceRecovery::Result> recover_if_free(const SiteConfig& site,
                                                      const VmFile& vm,
                                                      const std::string& migration,
                                                      const std::string& what);

// For the guardian: what `migration` still owes to the DNS (dns_change.h). True: nothing any more.
// False: somebody else is at it. Throws what keeps it from being done.
bool settle_names_if_free(const SiteConfig& site,
                          const VmFile& vm,
                          const std::string& migration,
                          const std::function<void(const std::string&)>& tell);

// The lock of a coordinator. Waits for a recovery that is under way, but not for a migration: then
// it throws Error(state).
RunLock lock_coordinator(const std::string& vm, const std::string& what);

} // namespace drover
