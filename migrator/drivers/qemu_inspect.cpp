// SPDX-License-Identifier: GPL-2.0-or-later
// A QEMU that is only looked at: queries alone.
#include "migrator/drivers/qemu.h"
#include "migrator/drivers/qemu_blocks.h"
#include "migrator/drivers/qemu_settings.h"

#include <algorithm>

namespace drover {
namespace {

using qemu::command_patience;
using Json = Qmp::Json;

constexpr int oldest_major = 7, oldest_minor = 2;

} // namespace

asio::awaitable<void> QemuOutgoing::look_at_state(Findings& found) {
    Json none = Json::object();
    const Json status = co_await qmp_->execute("query-status", none, command_patience);
    run_state_ = status.value("status", "unknown");
    const Json migration = co_await qmp_->execute("query-migrate", none, command_patience);
    const Json parameters =
        co_await qmp_->execute("query-migrate-parameters", std::move(none), command_patience);
    if (qemu::is_leftover(parameters, migration)) {
        found.push_back({Level::note,
                         "hypervisor",
                         "a migration that was killed has left its QEMU; the next one puts that "
                         "right",
                         ""});
    } else {
        throw_if_unfit(migration.value("status", "none"));
    }
    for (const Json& reason : migration.value("blocked-reasons", Json::array())) {
        found.push_back({Level::problem,
                         "hypervisor",
                         "QEMU refuses to migrate it: " + reason.get<std::string>(),
                         "unplug or unmount what it names"});
    }
}

asio::awaitable<void> QemuOutgoing::look_at_version(Findings& found, bool kvm) {
    Json none = Json::object();
    const Json answer = co_await qmp_->execute("query-version", none, command_patience);
    const Json capabilities =
        co_await qmp_->execute("query-migrate-capabilities", none, command_patience);
    const Json memory =
        co_await qmp_->execute("query-memory-size-summary", std::move(none), command_patience);
    const Json version = answer.value("qemu", Json::object());
    const int major = version.value("major", 0), minor = version.value("minor", 0);
    const bool pauses =
        std::any_of(capabilities.begin(), capabilities.end(), [](const Json& entry) {
            return entry.value("capability", "") == "pause-before-switchover";
        });
    const std::string text = fmt::format("QEMU {}.{} with {}, {}, {}",
                                         major,
                                         minor,
                                         kvm ? "KVM" : "TCG",
                                         run_state_,
                                         format_size(memory.value("base-memory", uint64_t{0})));
    if (!pauses) {
        found.push_back({Level::problem,
                         "hypervisor",
                         text + ": it can't pause before the switchover",
                         "start the VM with QEMU 7.2 or newer"});
    } else if (major < oldest_major || (major == oldest_major && minor < oldest_minor)) {
        found.push_back({Level::warning,
                         "hypervisor",
                         text + ": Drover was tried with 7.2 and newer alone",
                         "start the VM with a newer one"});
    } else {
        found.push_back({Level::ok, "hypervisor", text, ""});
    }
}

asio::awaitable<Inspection> QemuOutgoing::inspect() {
    only_looks_ = true;
    Inspection inspection;
    Findings& found = inspection.findings;
    try {
        co_await connect_to_running();
        co_await look_at_state(found);
        Json none = Json::object();
        const Json kvm = co_await qmp_->execute("query-kvm", none, command_patience);
        inspection.kvm = kvm.value("enabled", false);
        co_await look_at_version(found, inspection.kvm);
        co_await look_for_lost_writes();
        for (const std::string& warning : warnings_) {
            found.push_back({Level::warning, "memory", warning, ""});
        }
        const Json blocks = co_await qmp_->execute("query-block", none, command_patience);
        const Findings devices = qemu::block_findings(blocks, disks_);
        found.insert(found.end(), devices.begin(), devices.end());
        const Json cpus =
            co_await qmp_->execute("query-cpus-fast", std::move(none), command_patience);
        if (cpus.is_array() && !cpus.empty()) {
            Json property{{"path", cpus[0].value("qom-path", "")}, {"property", "type"}};
            const Json type =
                co_await qmp_->execute("qom-get", std::move(property), command_patience);
            inspection.host_cpu = type.is_string() && qemu::is_host_cpu(type.get<std::string>());
        }
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::cancelled) {
            throw;
        }
        found.push_back({Level::problem, "hypervisor", error.what(), ""});
    }
    co_return inspection;
}

} // namespace drover
