// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/qemu.h"
#include "migrator/drivers/qemu_settings.h"

#include <algorithm>
#include <array>

#include <asio/this_coro.hpp>

namespace drover {
namespace {

using qemu::command_patience;
using Json = Qmp::Json;

constexpr milliseconds cancel_patience{2000};
// QEMU's own default is 128 MiB/s, and its "0" has meant different things.
constexpr uint64_t unlimited_bandwidth = uint64_t{1} << 40;

const std::vector<std::string> ended{"completed", "failed", "cancelled"};

bool is_one_of(const std::string& text, const std::vector<std::string>& list) {
    return std::find(list.begin(), list.end(), text) != list.end();
}

} // namespace

QemuOutgoing::QemuOutgoing(std::string vm,
                           std::string monitor,
                           std::string key_dir,
                           std::map<std::string, std::string> disks)
    : vm_(std::move(vm)), monitor_(std::move(monitor)), key_dir_(std::move(key_dir)),
      disks_(std::move(disks)) {}

QemuOutgoing::~QemuOutgoing() {
    lost_ = nullptr;
    if (qmp_) {
        qmp_->close();
    }
    if (!only_looks_) {
        qemu::remove_keys(key_dir_);
    }
}

asio::awaitable<void> QemuOutgoing::connect() {
    const auto executor = co_await asio::this_coro::executor;
    changed_ = std::make_unique<Notifier>(executor);
    Qmp::Events events;
    events.on_event = [this](const std::string& event, const Json& data) { on_event(event, data); };
    events.on_close = [this] { lose("QEMU has ended, or closed its monitor"); };
    std::string name = "QEMU of " + vm_;
    qmp_ = co_await Qmp::connect(std::move(name), monitor_, command_patience, std::move(events));
}

asio::awaitable<void> QemuOutgoing::connect_to_running() {
    try {
        co_await connect();
    } catch (const Error& error) {
        if (error.sys_errno() != ENOENT && error.sys_errno() != ECONNREFUSED) {
            throw;
        }
        throw Error(
            ErrorKind::state,
            fmt::format("{}: no QEMU answers there: {} must run, with its monitor where 'qmp' "
                        "of [qemu] in its VM file says",
                        error.what(),
                        vm_));
    }
}

asio::awaitable<void> QemuOutgoing::describe(HypervisorLost lost) {
    co_await connect_to_running();
    co_await undo_leftover();
    Json none = Json::object();
    const Json status = co_await qmp_->execute("query-status", none, command_patience);
    run_state_ = status.value("status", "unknown");
    const Json migration = co_await qmp_->execute("query-migrate", none, command_patience);
    throw_if_unfit(migration.value("status", "none"));
    paused_by_operator_ = run_state_ != "running";
    co_await remember_settings();
    co_await look_for_lost_writes();
    lost_ = std::move(lost);
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::peer, lost_reason_);
    }
}

// going: its migration's status.
void QemuOutgoing::throw_if_unfit(const std::string& going) const {
    static const std::vector<std::string> unfit{"inmigrate",
                                                "finish-migrate",
                                                "save-vm",
                                                "restore-vm",
                                                "shutdown",
                                                "internal-error",
                                                "colo"};
    if (is_one_of(run_state_, unfit)) {
        throw Error(
            ErrorKind::state,
            fmt::format("{} can't be migrated: its QEMU is in state '{}'", vm_, run_state_));
    }
    if (run_state_ == "postmigrate") {
        throw Error(
            ErrorKind::state,
            fmt::format("{} can't be migrated: its QEMU has sent it elsewhere before (state "
                        "'postmigrate'); if it runs nowhere else, give its monitor 'cont'",
                        vm_));
    }
    if (going != "none" && !is_one_of(going, ended)) {
        throw Error(ErrorKind::state,
                    fmt::format("{} is being migrated already: QEMU says '{}'", vm_, going));
    }
}

// Where QEMU emulates the processor, before 9.0, reading whole words of its dirty bitmap leaves
// the emulated TLB as it is, through which a guest then writes unseen ("physmem: Fix migration
// dirty bitmap coherency with TCG memory access"). Memory that does not fill its last word goes
// page by page, and is right.
asio::awaitable<void> QemuOutgoing::look_for_lost_writes() {
    constexpr int first_right = 9;
    constexpr uint64_t bytes_of_a_word = 64 * 4096;
    warnings_.clear();
    Json none = Json::object();
    const Json version = co_await qmp_->execute("query-version", none, command_patience);
    const Json kvm = co_await qmp_->execute("query-kvm", none, command_patience);
    const Json memory =
        co_await qmp_->execute("query-memory-size-summary", std::move(none), command_patience);
    const int major = version.value("qemu", Json::object()).value("major", 0);
    const uint64_t size = memory.value("base-memory", uint64_t{0});
    if (major < first_right && !kvm.value("enabled", true) && size % bytes_of_a_word == 0) {
        warnings_.push_back(
            fmt::format("QEMU {} without KVM loses track of some of what a guest writes while its "
                        "memory is sent: {} may crash after the move. With KVM, QEMU {} or later, "
                        "or memory that is no multiple of 256 KiB (-m {}K) it does not",
                        major,
                        vm_,
                        first_right,
                        size / 1024 + 8));
    }
}

nlohmann::json QemuOutgoing::notes() const {
    return {{"parameters", *old_parameters_},
            {"capabilities", *old_capabilities_},
            {"paused", paused_by_operator_}};
}

asio::awaitable<bool> QemuOutgoing::reattach(nlohmann::json notes) {
    try {
        co_await connect();
    } catch (const Error& error) {
        if (error.sys_errno() != ENOENT && error.sys_errno() != ECONNREFUSED) {
            throw;
        }
        co_return false;
    }
    Json none = Json::object();
    const Json migration =
        co_await qmp_->execute("query-migrate", std::move(none), command_patience);
    status_ = migration.value("status", "");
    postcopy_ = status_.starts_with("postcopy-");
    old_parameters_ = notes.value("parameters", Json::object());
    old_capabilities_ = notes.value("capabilities", Json::array());
    paused_by_operator_ = notes.value("paused", false);
    started_ = true;
    co_return true;
}

// A coordinator that was killed has left its migration to us, or a dead link has kept it from
// ending. The disks are this host's still (SourceDisk::open has seen to that), so nothing of
// it runs elsewhere.
asio::awaitable<void> QemuOutgoing::undo_leftover() {
    Json none = Json::object();
    const Json parameters =
        co_await qmp_->execute("query-migrate-parameters", none, command_patience);
    const Json migration = co_await qmp_->execute("query-migrate", none, command_patience);
    status_ = migration.value("status", "none");
    if (!qemu::is_leftover(parameters, migration)) {
        co_return;
    }
    if (!is_one_of(status_, ended)) {
        co_await stop_migration();
    }
    const Deadline deadline = Clock::now() + command_patience;
    co_await put_back_guest(deadline);
}

void QemuOutgoing::on_event(const std::string& event, const Json& data) {
    if (event == "MIGRATION") {
        status_ = data.value("status", "");
    } else if (event == "STOP") {
        stopped_ = true;
        run_state_ = "paused";
    } else if (event == "RESUME") {
        stopped_ = false;
        paused_by_operator_ = false;
        run_state_ = "running";
    } else if (event == "SHUTDOWN") {
        const bool by_guest = data.is_object() && data.value("guest", false);
        lose(by_guest ? "the guest has powered itself off" : "QEMU was told to end");
    }
    changed_->notify();
}

void QemuOutgoing::lose(const std::string& what) {
    if (lost_reason_.empty()) {
        lost_reason_ = what;
        run_state_ = "ended";
    }
    changed_->notify();
    if (const HypervisorLost lost = std::exchange(lost_, nullptr)) {
        lost(lost_reason_);
    }
}

asio::awaitable<void> QemuOutgoing::remember_settings() {
    Json none = Json::object();
    const Json parameters =
        co_await qmp_->execute("query-migrate-parameters", none, command_patience);
    const Json capabilities =
        co_await qmp_->execute("query-migrate-capabilities", none, command_patience);
    old_parameters_ = Json::object();
    for (const char* key : qemu::ways_parameters) {
        if (parameters.contains(key)) {
            (*old_parameters_)[key] = parameters[key];
        }
    }
    old_capabilities_ = Json::array();
    for (const Json& entry : capabilities) {
        const std::string name = entry.value("capability", "");
        const auto& ours =
            qemu::ways_capabilities; // "events" harms nobody, and tells of a late end
        if (std::find(ours.begin(), ours.end(), name) != ours.end()) {
            old_capabilities_->push_back(entry);
        }
    }
}

asio::awaitable<void> QemuOutgoing::start_outgoing(MemoryLink link, MemoryTuning tuning) {
    started_ = true;
    status_.clear();
    std::vector<std::string> capabilities{"events", "pause-before-switchover"};
    co_await qemu::set_ways(qmp_, std::move(capabilities), link.ways);
    co_await qemu::add_credentials(qmp_, "client", link, key_dir_);
    qemu::remove_keys(key_dir_); // a client reads its key once, when the object is made
    co_await tune(tuning);
    Json arguments{{"uri", qemu::migration_uri(link)}};
    co_await qmp_->execute("migrate", std::move(arguments), command_patience);
}

asio::awaitable<void> QemuOutgoing::tune(MemoryTuning tuning) {
    Json parameters{
        {"downtime-limit", std::min<uint64_t>(tuning.downtime_ms, 2000000)},
        {"max-bandwidth", tuning.max_bandwidth == 0 ? unlimited_bandwidth : tuning.max_bandwidth},
        {"max-postcopy-bandwidth", tuning.max_bandwidth}};
    co_await qmp_->execute("migrate-set-parameters", std::move(parameters), command_patience);
}

asio::awaitable<MemoryProgress> QemuOutgoing::progress() {
    Json none = Json::object();
    const Json migration =
        co_await qmp_->execute("query-migrate", std::move(none), command_patience);
    const Json ram = migration.value("ram", Json::object());
    MemoryProgress progress;
    progress.total_bytes = ram.value("total", uint64_t{0});
    progress.remaining_bytes = ram.value("remaining", uint64_t{0});
    progress.sent_bytes = ram.value("transferred", uint64_t{0});
    progress.passes = ram.value("dirty-sync-count", uint64_t{0});
    progress.dirty_rate =
        ram.value("dirty-pages-rate", uint64_t{0}) * ram.value("page-size", uint64_t{4096});
    progress.send_rate = static_cast<uint64_t>(ram.value("mbps", 0.0) * 1e6 / 8);
    co_return progress;
}

asio::awaitable<std::string> QemuOutgoing::wait_status(std::vector<std::string> any,
                                                       Deadline deadline) {
    while (!is_one_of(status_, any)) {
        if (!lost_reason_.empty()) {
            throw Error(ErrorKind::peer, lost_reason_);
        }
        const bool woken = co_await changed_->wait_until(deadline);
        if (!woken) {
            throw Error(
                ErrorKind::timeout,
                fmt::format("QEMU's migration is in state '{}' and does not go on", status_));
        }
        if (std::exchange(stopped_, false)) {
            // The migration's own STOP (finish-migrate), or an operator's?
            Json none = Json::object();
            const Json found =
                co_await qmp_->execute("query-status", std::move(none), command_patience);
            const std::string state = found.value("status", "");
            paused_by_operator_ =
                state != "finish-migrate" && state != "running" && state != "postmigrate";
        }
    }
    co_return status_;
}

asio::awaitable<void> QemuOutgoing::throw_if_failed() {
    if (status_ != "failed" && status_ != "cancelled") {
        co_return;
    }
    Json none = Json::object();
    const Json migration =
        co_await qmp_->execute("query-migrate", std::move(none), command_patience);
    throw Error(ErrorKind::peer,
                fmt::format("the memory did not get across: {}",
                            migration.value("error-desc",
                                            status_ == "cancelled" ? "it was cancelled in QEMU"
                                                                   : "QEMU gives no reason")));
}

asio::awaitable<void> QemuOutgoing::wait_paused(Deadline deadline) {
    std::vector<std::string> any{"pre-switchover", "completed", "failed", "cancelled"};
    co_await wait_status(std::move(any), deadline);
    co_await throw_if_failed();
    run_state_ = "paused";
}

asio::awaitable<void> QemuOutgoing::finish_memory(milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    Json arguments{{"state", "pre-switchover"}};
    co_await qmp_->execute("migrate-continue", std::move(arguments), command_patience);
    std::vector<std::string> any = ended;
    any.insert(any.end(), {qemu::postcopy_going, qemu::postcopy_broken});
    co_await wait_status(std::move(any), deadline);
    postcopy_ = status_.starts_with("postcopy-");
    if (status_ == qemu::postcopy_going) {
        // Said before the devices are inactive, and in the same hold of the lock that a command
        // waits for.
        Json none = Json::object();
        const Json migration =
            co_await qmp_->execute("query-migrate", std::move(none), command_patience);
        status_ = migration.value("status", "");
    }
    co_await throw_if_failed();
    // From here the VM is whole at the other end: that QEMU ends here stops nothing.
    lost_ = nullptr;
}

asio::awaitable<void> QemuOutgoing::start_postcopy() {
    return command("migrate-start-postcopy");
}

asio::awaitable<MemoryRest> QemuOutgoing::rest() {
    if (!postcopy_ || status_ == "completed") {
        co_return MemoryRest::none;
    }
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::state, lost_reason_);
    }
    Json none = Json::object();
    const Json migration =
        co_await qmp_->execute("query-migrate", std::move(none), command_patience);
    status_ = migration.value("status", "");
    if (status_ == "completed") {
        co_return MemoryRest::none;
    }
    if (is_one_of(status_, ended)) {
        const std::string why = migration.value("error-desc", "QEMU gives no reason");
        throw Error(ErrorKind::state,
                    fmt::format("QEMU's migration is in state '{}': {}", status_, why));
    }
    co_return status_ == qemu::postcopy_broken ? MemoryRest::interrupted : MemoryRest::going;
}

// Whether QEMU may end here; with what has failed nothing can be done any more.
asio::awaitable<bool> QemuOutgoing::is_needed() {
    if (rest_is_lost_) {
        co_return false;
    }
    try {
        const MemoryRest left = co_await rest();
        co_return left != MemoryRest::none;
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::state) {
            throw;
        }
    }
    co_return false;
}

asio::awaitable<void> QemuOutgoing::send_again(MemoryLink link) {
    if (status_ != qemu::postcopy_broken) {
        Json none = Json::object();
        co_await qmp_->execute_oob("migrate-pause", std::move(none), command_patience);
        std::vector<std::string> any{qemu::postcopy_broken};
        const Deadline deadline = Clock::now() + command_patience;
        co_await wait_status(std::move(any), deadline);
    }
    co_await qemu::add_credentials(qmp_, "client", link, key_dir_);
    qemu::remove_keys(key_dir_);
    status_ = "postcopy-recover"; // until the next event says otherwise
    Json arguments{{"uri", qemu::migration_uri(link)}, {"resume", true}};
    co_await qmp_->execute("migrate", std::move(arguments), command_patience);
    std::vector<std::string> any{qemu::postcopy_going, qemu::postcopy_broken, "completed"};
    const Deadline deadline = Clock::now() + command_patience;
    co_await wait_status(std::move(any), deadline);
    if (status_ == qemu::postcopy_broken) {
        throw Error(ErrorKind::peer, "the memory's new link has broken as well");
    }
}

asio::awaitable<void> QemuOutgoing::command(std::string name) {
    Json none = Json::object();
    co_await qmp_->execute(std::move(name), std::move(none), command_patience);
}

// After a migration that has ended: the guest as it was before, its devices its own again.
asio::awaitable<void> QemuOutgoing::put_back_guest(Deadline deadline) {
    // "completed" is announced a moment before the state in which `cont` is allowed; there is no
    // event for that one. Should that take longer, over a dead link for one, what it may wait for
    // is ended: the migration is not wanted any more.
    Json none = Json::object();
    std::string state = "finish-migrate";
    const Deadline polite = Clock::now() + cancel_patience;
    bool yanked = false;
    while (state == "finish-migrate") {
        const Json found = co_await qmp_->execute("query-status", none, command_patience);
        state = found.value("status", "");
        if (Clock::now() > deadline) {
            throw Error(ErrorKind::timeout, "QEMU does not finish its migration");
        }
        if (state == "finish-migrate" && !yanked && Clock::now() > polite) {
            yanked = true;
            co_await yank_connections();
        }
        const milliseconds moment(10);
        co_await sleep_for(moment);
    }
    if (state != "postmigrate") {
        co_return; // QEMU has resumed it by itself, or it was never stopped
    }
    const bool paused = paused_by_operator_;
    std::vector<asio::awaitable<void>> commands;
    commands.push_back(command("cont"));
    if (paused) {
        // QEMU leaves this state, in which it can't be migrated again, by `cont` alone. `stop` is
        // sent with it, so that the guest does not get to do anything.
        commands.push_back(command("stop"));
    }
    co_await all(std::move(commands));
    paused_by_operator_ = paused;
}

asio::awaitable<void> QemuOutgoing::yank_connections() {
    Json instance{{"type", "migration"}};
    Json instances = Json::array();
    instances.push_back(std::move(instance));
    Json arguments{{"instances", std::move(instances)}};
    try {
        co_await qmp_->execute("yank", std::move(arguments), command_patience);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::state) { // else it has none left
            throw;
        }
    }
}

// Whether the migration has ended by then.
asio::awaitable<bool> QemuOutgoing::ends_until(Deadline deadline) {
    try {
        co_await wait_status(ended, deadline);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::timeout) {
            throw;
        }
        co_return false;
    }
    co_return true;
}

// Over a dead link migrate_cancel waits for TCP to give up, which `yank` makes it do, but not
// while it connects. The guest runs meanwhile, and QEMU ends its migration in the background.
asio::awaitable<void> QemuOutgoing::stop_migration() {
    Json none = Json::object();
    const Json migration =
        co_await qmp_->execute("query-migrate", std::move(none), command_patience);
    status_ = migration.value("status", "");
    if (status_ == qemu::postcopy_broken) {
        throw Error(
            ErrorKind::refused,
            fmt::format(
                "the other end of its post-copy is gone, and QEMU can't go back from there: "
                "end this QEMU, and start {} anew from its disks",
                vm_));
    }
    co_await command("migrate_cancel");
    const Deadline polite = Clock::now() + cancel_patience;
    const bool over = co_await ends_until(polite);
    if (over) {
        co_return;
    }
    co_await yank_connections();
    const Deadline last = Clock::now() + cancel_patience;
    co_await ends_until(last);
}

asio::awaitable<void> QemuOutgoing::cancel(milliseconds patience) {
    if (!started_) {
        co_return;
    }
    lost_ = nullptr;
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::peer, lost_reason_);
    }
    const Deadline deadline = Clock::now() + patience;
    if (!status_.empty() && !is_one_of(status_, ended)) {
        co_await stop_migration();
    }
    co_await put_back_guest(deadline);
    co_await put_back_settings();
    Json none = Json::object();
    const Json found = co_await qmp_->execute("query-status", std::move(none), command_patience);
    run_state_ = found.value("status", "");
    started_ = false;
    if (run_state_ != "running" && !paused_by_operator_) {
        throw Error(ErrorKind::refused,
                    fmt::format("QEMU does not run the guest: it is in state '{}'", run_state_));
    }
}

// What can't be put back does no harm to the guest, so nothing stops here.
asio::awaitable<void> QemuOutgoing::put_back_settings() {
    if (!old_parameters_->contains("tls-creds")) {
        (*old_parameters_)["tls-creds"] = "";
    }
    const Json capabilities{{"capabilities", *old_capabilities_}};
    const Json object{{"id", qemu::credentials}};
    const std::array<std::pair<const char*, Json>, 3> steps{
        {{"migrate-set-parameters", *old_parameters_},
         {"object-del", object},
         {"migrate-set-capabilities", capabilities}}};
    for (const auto& [command, arguments] : steps) {
        try {
            co_await qmp_->execute(command, arguments, command_patience);
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::state) {
                throw;
            }
        }
    }
}

asio::awaitable<void> QemuOutgoing::destroy_source(milliseconds patience) {
    lost_ = nullptr;
    if (!lost_reason_.empty()) {
        co_return;
    }
    const bool needed = co_await is_needed();
    if (needed) {
        throw Error(ErrorKind::state,
                    fmt::format("some of the memory of {} is yet to go: QEMU stays", vm_));
    }
    const Deadline deadline = Clock::now() + patience;
    try {
        Json none = Json::object();
        co_await qmp_->execute("quit", std::move(none), command_patience);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::peer) { // peer: it went before it could answer
            throw;
        }
    }
    co_await qmp_->wait_closed(deadline);
}

} // namespace drover
