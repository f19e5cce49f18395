// SPDX-License-Identifier: GPL-2.0-or-later
// `drover check`: what a migration would trip over, at both sides, before anything starts. It
// changes nothing: no lock is taken, no hook run, nothing started but the agent at the other side.
#pragma once

#include "migrator/agent_answers.h"
#include "migrator/cli.h"
#include "migrator/driver.h"

namespace drover {

// To its end on the calling thread. Findings go to stdout, each as it is found; with json all of
// them at the end, as one object: {"vm", "host", "result": the worst level, "findings": [{"where":
// "here" or "there", "level", "about", "text", "advice"}]}. options.peer.host may be empty: then
// only this side is looked at. Returns exit_failed if there is a problem, else exit_done. Throws
// Error(usage) for options that can't be right, Error.
int run_check(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options);

// Whether the VM's processor may be another one there. Pure.
Findings cpu_findings(const Inspection& vm, const Cpu& here, const Survey& there);

} // namespace drover
