// SPDX-License-Identifier: GPL-2.0-or-later
// How a migration ends: with clean-up at both sides, or on the way back (recovery.h).
#include "migrator/dns_change.h"
#include "migrator/driver.h"
#include "migrator/migration.h"
#include "migrator/paths.h"
#include "migrator/postcopy.h"
#include "migrator/serve.h"
#include "migrator/tunnels.h"
#include "nbd-proxy/record_store.h"

#include <asio/this_coro.hpp>

namespace drover {

// Notes what went wrong, and goes on.
asio::awaitable<void> Migration::attempt(std::string what, asio::awaitable<void> task) {
    try {
        co_await std::move(task);
    } catch (const std::exception& error) {
        troubles_.push_back(what.empty() ? error.what()
                                         : fmt::format("{}: {}", what, error.what()));
    }
}

// --- after the VM runs there

asio::awaitable<void> Migration::finish() {
    turn_names(); // where it was found out late that the VM runs there
    co_await see_rest_across();
    co_await take_figures();
    for (const auto& disk : disks_) {
        disk->unwatch();
    }
    Recovery::Trouble trouble = [this](const std::string& text) { troubles_.push_back(text); };
    co_await let_go(parts(), std::move(trouble));
    if (hypervisor_->has_memory()) {
        co_await attempt("", settle_tunnels(vm_.name, false));
    }
    co_await wait_for_network();
    co_await wait_for_names();
    co_await agent_.end();
    if (!options_.disk_only || options_.release_source) {
        // Nobody uses them any more; a disk that comes back wants their sockets.
        for (const auto& disk : disks_) {
            try {
                stop_disk(site_, vm_.name, disk->name());
            } catch (const std::exception& error) {
                troubles_.push_back(error.what());
            }
        }
    }
    if (!troubles_.empty()) {
        throw Error(ErrorKind::state, "clean-up remains");
    }
    if (options_.release_source) {
        co_await release();
    }
    co_await journal_->step(JournalStep::over);
    if (!died_.empty()) {
        throw Error(ErrorKind::state, died_);
    }
}

// The VM runs there; its disks are there already, whatever becomes of its memory.
asio::awaitable<void> Migration::see_rest_across() {
    if (!options_.memory.postcopy || !died_.empty()) {
        co_return;
    }
    PostcopyNews news;
    news.progress = [this](const MemoryProgress& now) {
        memory_ = now;
        show_progress();
    };
    news.warning = [this](const std::string& text) { say("warning", text); };
    try {
        const bool was_left =
            co_await see_memory_across(*hypervisor_, agent_, data_address_, std::move(news));
        if (was_left && !report_.times.whole) {
            report_.times.whole = Clock::now();
        }
    } catch (const Error& error) {
        died_ = error.what();
    }
}

asio::awaitable<void> Migration::release() {
    co_await journal_->step(JournalStep::release);
    for (const auto& disk : disks_) {
        const std::string file = release_image(paths().disk_state(vm_.name, disk->name()));
        say("info", fmt::format("{} is removed", file));
    }
}

asio::awaitable<void> Migration::wait_for_network() {
    while (turning_) {
        co_await changed_.wait_until(no_deadline); // the hook has a time-out of its own
    }
    if (!turn_failure_.empty()) {
        troubles_.push_back(turn_failure_);
    }
}

asio::awaitable<void> Migration::wait_for_names() {
    while (naming_) {
        co_await changed_.wait_until(no_deadline); // it ends by itself
    }
}

asio::awaitable<void> Migration::restore_names() {
    std::exception_ptr failure;
    std::vector<std::string> foreign;
    std::function<void()> work = [&] { foreign = restore_dns(vm_); };
    try {
        co_await on_a_thread(std::move(work));
    } catch (const std::exception&) {
        failure = std::current_exception();
    }
    tell_names(failure, foreign);
}

// No failure of the migration.
void Migration::tell_names(const std::exception_ptr& failure,
                           const std::vector<std::string>& foreign) {
    for (const std::string& text : foreign) {
        say("warning", text);
    }
    if (failure) {
        say("warning",
            fmt::format(
                "{}. The DNS records of {} are not what they have to be: its guardian tries "
                "again for {} minutes, and `drover dns {} --settle` does",
                text_of(failure),
                vm_.name,
                dns_patience.count(),
                vm_.name));
    }
}

asio::awaitable<void> Migration::take_figures() {
    for (size_t i = 0; i < disks_.size(); ++i) {
        const SourceDisk& disk = *disks_[i];
        DiskFigures figures;
        figures.name = disk.name();
        figures.size = disk.status().value("size", uint64_t{0});
        figures.sent_bytes = disk.total("sent_bytes");
        figures.captured_bytes = disk.total("captured_bytes");
        figures.delta_bytes = disk.total("delta_bytes");
        figures.zero_bytes = disk.total("zero_bytes");
        figures.lsn = i < handover_lsns_.size() ? handover_lsns_[i] : 0;
        report_.disks.push_back(std::move(figures));
    }
    if (hypervisor_->has_memory()) {
        co_await attempt("", take_memory_figures());
        std::function<void()> look = [this] { report_.tunnels = tunnel_ends(vm_.name); };
        co_await attempt("", on_a_thread(std::move(look)));
    }
}

asio::awaitable<void> Migration::take_memory_figures() {
    report_.memory = co_await hypervisor_->progress();
}

// --- what did not come to its end

asio::awaitable<int> Migration::conclude_failed() {
    // Who was told to stop sees "interrupted", which is not the reason.
    const bool stopped = stop_reason_ && can_stop(phase_);
    report_.error = stopped ? stop_reason_->what() : text_of(failure_);
    bool wrong_use = false;
    try {
        std::rethrow_exception(failure_);
    } catch (const Error& error) {
        wrong_use = phase_ == Phase::check && !stopped && error.kind() == ErrorKind::usage;
    } catch (const std::exception&) {
        // Told above; there is no exit status for it.
    }
    step(stopped ? PhaseEvent::stop : PhaseEvent::failure);
    if (phase_ == Phase::undoing || phase_ == Phase::retreating) {
        co_await go_back();
    }
    if (phase_ == Phase::finishing) {
        co_await attempt("", finish());
        step(troubles_.empty() ? PhaseEvent::step : PhaseEvent::failure);
    }
    co_await wait_for_names(); // also where a verification has failed
    co_await agent_.end();
    report_.result = phase_name(phase_);
    switch (phase_) {
    case Phase::done:
        say("warning",
            fmt::format("{} runs at {} now, though {}", vm_.name, destination(), report_.error));
        co_return exit_done;
    case Phase::failed:
        tell_failed(!vm_lost_);
        co_return wrong_use ? exit_usage : exit_failed;
    case Phase::unclean:
        if (!died_.empty()) {
            tell_died();
            co_return exit_recover;
        }
        tell_unclean();
        co_return exit_cleanup;
    default:
        tell_stranded();
        co_return exit_recover;
    }
}

// To `finishing`, `failed` or `stranded`.
asio::awaitable<void> Migration::go_back() {
    for (const auto& disk : disks_) {
        disk->unwatch();
    }
    if (!touched_) {
        step(PhaseEvent::step);
        co_return;
    }
    Recovery::Plan plan;
    plan.migration = report_.migration;
    Recovery recovery(
        parts(), std::move(plan), [this](const std::string& text) { troubles_.push_back(text); });
    Verdict verdict = Verdict::undecided;
    try {
        verdict = co_await recovery.run();
        why_stranded_ = recovery.why();
    } catch (const std::exception& error) {
        // It may have come to anything: whoever looks at the records next decides.
        why_stranded_ = error.what();
    }
    if (verdict == Verdict::there) {
        if (!turned_) {
            turn_network();
        }
        step(PhaseEvent::promoted);
        co_return;
    }
    if (verdict == Verdict::undecided) {
        step(PhaseEvent::failure);
        co_return;
    }
    if (phase_ == Phase::retreating) {
        step(PhaseEvent::refused);
    }
    co_await wait_for_network();
    stuck_ = recovery.stuck();
    if (!stuck_) {
        if (hypervisor_->has_memory()) {
            co_await attempt("", settle_tunnels(vm_.name, true));
        }
        co_await attempt("", failed_hook());
        if (names_) {
            co_await restore_names();
        }
    }
    if (!recovery.more_to_do()) {
        co_await attempt("", journal_->step(JournalStep::over));
    }
    step(recovery.runs_here() || vm_lost_ ? PhaseEvent::step : PhaseEvent::failure);
}

asio::awaitable<void> Migration::failed_hook() {
    return run_hook("failed", vm_.hooks.failed, hook_environment(), patience(site_.timeouts.hook));
}

void Migration::tell_failed(bool runs) {
    for (const std::string& trouble : troubles_) {
        say("warning", trouble);
    }
    const char* const now = !touched_ ? "nothing was changed"
                            : runs ? "it goes on here as before; the same command may be run again"
                                   : "its disks stay here";
    say("error", fmt::format("{} was not migrated: {}; {}", vm_.name, report_.error, now));
}

void Migration::tell_unclean() {
    if (!troubles_.empty()) {
        report_.error.clear();
    }
    for (const std::string& trouble : troubles_) {
        report_.error += (report_.error.empty() ? "" : "; ") + trouble;
    }
    say("warning",
        fmt::format("{} runs at {} now, but not everything is put away here: {}; `drover recover "
                    "{}` tries it again",
                    vm_.name,
                    destination(),
                    report_.error,
                    vm_.name));
}

void Migration::tell_died() {
    for (const std::string& trouble : troubles_) {
        say("warning", trouble);
    }
    say("error",
        fmt::format("{} ran at {}, but a part of its memory did not get there: {}. It has stopped "
                    "as if its "
                    "power had failed. Its disks are there: start it there",
                    vm_.name,
                    destination(),
                    died_));
}

void Migration::tell_stranded() {
    for (const std::string& trouble : troubles_) {
        say("warning", trouble);
    }
    if (why_stranded_.empty()) {
        say("error",
            fmt::format("{0} was not migrated: {1}. Its disks are this host's, but it could not be "
                        "resumed: {2}",
                        vm_.name,
                        report_.error,
                        stuck_ ? fmt::format("its guardian, or `drover recover {}`, tries it again",
                                             vm_.name)
                               : "look at its hypervisor, or start it here"));
        return;
    }
    if (!may_be_fenced_) {
        say("error",
            fmt::format(
                "{0}: {1}. Whether all is as before is not known here ({2}): its guardian, or "
                "`drover recover {0}`, sees to it",
                vm_.name,
                report_.error,
                why_stranded_));
        return;
    }
    say("error",
        fmt::format("{0}: {1}. The VM is stopped here, its disks have been given up, and whether "
                    "{2} has taken them over is not known ({3}); so it is started nowhere. As soon "
                    "as {2} answers, its guardian, or `drover recover {0}`, brings it up where it "
                    "belongs",
                    vm_.name,
                    report_.error,
                    destination(),
                    why_stranded_));
}

} // namespace drover
