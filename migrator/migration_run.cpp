// SPDX-License-Identifier: GPL-2.0-or-later
// A migration as a whole: from the start to the exit status, and what it tells meanwhile.
#include "common/secrets.h"
#include "migrator/check_options.h"
#include "migrator/driver.h"
#include "migrator/drivers/none.h"
#include "migrator/host_facts.h"
#include "migrator/migration.h"
#include "migrator/paths.h"
#include "migrator/run_lock.h"
#include "migrator/vm_file.h"

#include <ctime>

#include <asio/bind_cancellation_slot.hpp>
#include <asio/co_spawn.hpp>

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

} // namespace

Migration::Migration(asio::any_io_executor executor,
                     const SiteConfig& site,
                     const VmFile& vm,
                     const MigrateOptions& options)
    : executor_(executor), site_(site), vm_(vm), options_(options), printer_(stdout, options.json),
      downtime_ms_(options.downtime_ms), max_bandwidth_(options.max_bandwidth), changed_(executor),
      // --disk-only: the VM stays
      hypervisor_(options.disk_only ? std::make_unique<NoneOutgoing>() : make_outgoing(vm)),
      vm_here_(vm.name, *hypervisor_, site.timeouts),
      agent_(executor, site, options.peer, agent_events()) {
    report_.vm = vm.name;
    report_.from = host_name();
    report_.to = destination();
    report_.migration = random_hex(16);
    report_.disk_only = options.disk_only || vm.hypervisor == "none";
    report_.began_at = std::time(nullptr);
    report_.times.begin = Clock::now();
    data_address_ = data_address(options.peer);
    for (const DiskSpec& disk : vm.disks) {
        disks_.push_back(std::make_unique<SourceDisk>(
            executor, site, vm.name, disk, changed_, [this](const Error& error) {
                request_stop(error);
            }));
    }
}

PeerAgent::Events Migration::agent_events() {
    PeerAgent::Events events;
    events.log = [this](const std::string& level, const std::string& text) { say(level, text); };
    events.lost = [this](const std::string& what) { request_stop(Error(ErrorKind::peer, what)); };
    events.started = [this](pid_t pid) {
        if (journal_) {
            note_agent(pid);
        }
    };
    return events;
}

// For whoever cleans up after us: what we have started, and how the destination is reached.
Json Migration::journal_facts() const {
    Json disks = Json::array();
    for (const auto& disk : disks_) {
        disks.push_back(disk->name());
    }
    return {{"vm", vm_.name},
            {"migration", report_.migration},
            {"generation", report_.generation},
            {"host", options_.peer.host},
            {"rsh", options_.peer.rsh},
            {"data_address", options_.peer.data_address},
            {"to_uri", options_.peer.to_uri},
            {"disk_only", options_.disk_only},
            {"detach", options_.detach},
            {"disks", std::move(disks)},
            {"description", vm_description()}};
}

void Migration::note_agent(pid_t pid) {
    journal_->note(Json{{"rsh_pid", pid}, {"rsh_started", start_of_process(pid).value_or(0)}});
}

Migration::~Migration() = default;

asio::awaitable<int> Migration::run() {
    printer_.phase(phase_, 0);
    auto done =
        asio::bind_cancellation_slot(stop_signal_.slot(), [this](std::exception_ptr failure) {
            forward_ended_ = true;
            failure_ = failure;
            changed_.notify();
        });
    asio::co_spawn(executor_, forward(), std::move(done));
    while (!forward_ended_) {
        co_await changed_.wait_until(no_deadline);
    }
    const int status = co_await conclude();
    finish_report();
    over_ = true;
    changed_.notify();
    co_return status;
}

asio::awaitable<int> Migration::conclude() {
    if (!failure_) {
        if (options_.dry_run) {
            co_await agent_.end();
            report_.result = "checked";
            say("info", fmt::format("{} can be migrated to {}", vm_.name, destination()));
            co_return exit_done;
        }
        step(PhaseEvent::step);
        report_.result = "done";
        co_return exit_done;
    }
    co_return co_await conclude_failed();
}

void Migration::step(PhaseEvent event) {
    const auto next = next_phase(phase_, event);
    if (!next) {
        throw std::logic_error(fmt::format("no such step in phase {}", phase_name(phase_)));
    }
    phase_ = *next;
    printer_.phase(phase_, elapsed_ms());
}

bool Migration::request_stop(const Error& why) {
    if (forward_ended_ || stop_reason_ || !can_stop(phase_)) {
        return false;
    }
    stop_reason_ = why;
    stop_signal_.emit(asio::cancellation_type::terminal);
    return true;
}

asio::awaitable<void> Migration::abort(std::string who) {
    const bool going_back = stop_reason_ || phase_ == Phase::undoing || phase_ == Phase::failed;
    if (!going_back) {
        const Error reason(ErrorKind::cancelled, "aborted by " + who);
        const bool stopped = request_stop(reason);
        if (!stopped) {
            throw Error(ErrorKind::refused,
                        fmt::format("too late: the disks have been given up here (phase {})",
                                    phase_name(phase_)));
        }
    }
    while (!over_) {
        co_await changed_.wait_until(no_deadline);
    }
    if (phase_ != Phase::failed) {
        throw Error(ErrorKind::state, report_.error);
    }
}

asio::awaitable<void> Migration::set(std::optional<uint64_t> downtime_ms,
                                     std::optional<uint64_t> max_bandwidth) {
    check_downtime(site_, downtime_ms.value_or(downtime_ms_));
    downtime_ms_ = downtime_ms.value_or(downtime_ms_);
    max_bandwidth_ = max_bandwidth.value_or(max_bandwidth_);
    const bool with_memory = phase_ == Phase::memory && hypervisor_->has_memory();
    // Disks that are ready need little: enough to stay so.
    const uint64_t disks = with_memory ? max_bandwidth_ / 4 : max_bandwidth_;
    for (const auto& disk : disks_) {
        Json params{{"downtime_ms", downtime_ms_}};
        if (max_bandwidth) {
            params["max_bandwidth"] =
                max_bandwidth_ == 0 ? 0 : std::max<uint64_t>(disks / disks_.size(), 1);
        }
        co_await disk->call("set", std::move(params), milliseconds(10000));
    }
    if (with_memory && report_.times.memory) {
        const MemoryTuning tuning = memory_tuning();
        co_await hypervisor_->tune(tuning);
    }
}

MemoryTuning Migration::memory_tuning() const {
    MemoryTuning tuning;
    tuning.downtime_ms = downtime_ms_;
    tuning.max_bandwidth = max_bandwidth_ / 4 * 3;
    return tuning;
}

Json Migration::status() const {
    Json disks = Json::array();
    for (const auto& disk : disks_) {
        disks.push_back({{"name", disk->name()}, {"status", disk->status()}});
    }
    return {{"vm", vm_.name},
            {"to", report_.to},
            {"migration", report_.migration},
            {"generation", report_.generation},
            {"phase", phase_name(phase_)},
            {"elapsed_ms", elapsed_ms()},
            {"hypervisor", hypervisor_->state()},
            {"memory",
             memory_ ? Json{{"total_bytes", memory_->total_bytes},
                            {"remaining_bytes", memory_->remaining_bytes},
                            {"sent_bytes", memory_->sent_bytes},
                            {"passes", memory_->passes}}
                     : Json()},
            {"disks", std::move(disks)}};
}

void Migration::show_progress() {
    ProgressLine line;
    line.phase = phase_;
    line.elapsed_ms = elapsed_ms();
    line.memory = memory_;
    for (const auto& disk : disks_) {
        line.total_bytes += disk->status().value("size", uint64_t{0});
        line.left_bytes += disk->left_bytes();
        line.sent_bytes += disk->total("sent_bytes");
        line.rate += disk->number("drain_rate");
        if (const uint64_t eta = disk->number("eta_ms"); eta > line.eta_ms.value_or(0)) {
            line.eta_ms = eta;
        }
        if (const uint64_t limit = disk->number("throttle_limit"); limit != 0) {
            line.throttle_limit = line.throttle_limit.value_or(0) + limit;
        }
    }
    printer_.progress(line);
}

void Migration::finish_report() {
    report_.times.end = Clock::now();
    if (!touched_) {
        printer_.report(report_);
        return;
    }
    try {
        make_directories(paths().vm_state(vm_.name), 0700);
        keep_report(paths().vm_state(vm_.name) + "/last-migration.json", report_json(report_));
    } catch (const std::exception& error) {
        say("warning", fmt::format("the report could not be kept: {}", error.what()));
    }
    printer_.report(report_);
}

std::string Migration::text_of(const std::exception_ptr& failure) {
    try {
        std::rethrow_exception(failure);
    } catch (const std::exception& error) {
        return error.what();
    }
}

uint64_t Migration::elapsed_ms() const {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<milliseconds>(Clock::now() - *report_.times.begin).count());
}

HookEnvironment Migration::hook_environment() const {
    HookEnvironment environment;
    environment.vm = vm_.name;
    environment.from = report_.from;
    environment.to = destination();
    environment.migration = report_.migration;
    return environment;
}

Json Migration::vm_description() const {
    std::vector<VmDescription::Disk> disks;
    for (const auto& disk : disks_) {
        VmDescription::Disk entry;
        entry.name = disk->name();
        entry.uuid = disk->status().value("uuid", "");
        entry.size = disk->status().value("size", uint64_t{0});
        entry.block_size = disk->status().value("block_size", uint64_t{0});
        disks.push_back(std::move(entry));
    }
    const NetworkSpec::Mode network = wants_tunnel_ ? NetworkSpec::Mode::tunnel
                                      : stretched_  ? NetworkSpec::Mode::stretched
                                                    : NetworkSpec::Mode::none;
    return describe(vm_, disks, hypervisor_->values(), network);
}

std::string Migration::destination() const {
    return to_plain_server() ? options_.peer.to_uri : options_.peer.host;
}

} // namespace drover
