// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/unix_socket.h"
#include "migrator/drivers/qemu.h"
#include "migrator/drivers/qemu_settings.h"
#include "migrator/paths.h"

#include <algorithm>

#include <asio/this_coro.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover {
namespace {

using qemu::command_patience;
using Json = Qmp::Json;

bool has_word(const std::vector<std::string>& argv, const char* word) {
    return std::find(argv.begin(), argv.end(), word) != argv.end();
}

// With post-copy: whether it is paused by then is another question.
bool holds_enough(const std::string& status) {
    return status == "completed" || status.starts_with("postcopy-");
}

// Both are what makes it wait. A template without -S would run the guest as soon as its
// memory is here, before the source has given the disks away.
std::vector<std::string> with_waiting(std::vector<std::string> argv) {
    if (!has_word(argv, "-S")) {
        argv.push_back("-S");
    }
    if (!has_word(argv, "-incoming")) {
        argv.insert(argv.end(), {"-incoming", "defer"});
    }
    return argv;
}

} // namespace

QemuIncoming::QemuIncoming(IncomingSpec spec) : spec_(std::move(spec)) {}

QemuIncoming::~QemuIncoming() {
    lost_ = nullptr;
    if (qmp_) {
        qmp_->close();
    }
    qemu::remove_keys(spec_.key_dir);
}

asio::awaitable<void>
QemuIncoming::start_incoming(MemoryLink link, HypervisorLost lost, milliseconds patience) {
    const auto executor = co_await asio::this_coro::executor;
    changed_ = std::make_unique<Notifier>(executor);
    const Deadline deadline = Clock::now() + patience;
    if (::unlink(spec_.monitor.c_str()) != 0 && errno != ENOENT) {
        throw_errno(spec_.monitor);
    }
    struct stat info {};
    log_start_ = ::stat(spec_.log.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
    SpawnOptions options;
    options.argv = with_waiting(spec_.command);
    options.log_file = spec_.log;
    options.detached = true;
    child_ = spawn(options);
    process_.reset(::fcntl(child_->pidfd(), F_DUPFD_CLOEXEC, 0));
    state_ = "starting";
    co_await wait_for_monitor(deadline);

    Json none = Json::object();
    const Json status = co_await qmp_->execute("query-status", std::move(none), command_patience);
    state_ = status.value("status", "unknown");
    if (state_ != "inmigrate") {
        throw Error(
            ErrorKind::usage,
            fmt::format("QEMU does not wait for a migration (its state is '{}'): the template's "
                        "-incoming must be 'defer'",
                        state_));
    }
    std::vector<std::string> capabilities{
        "events", "pause-before-switchover", "late-block-activate"};
    co_await qemu::set_ways(qmp_, std::move(capabilities), link.ways);
    co_await qemu::add_credentials(qmp_, "server", link, spec_.key_dir);
    // The switches are told when the VM runs here, not when its memory has come.
    Json parameters{{"announce-rounds", 0}};
    co_await qmp_->execute("migrate-set-parameters", std::move(parameters), command_patience);
    Json arguments{{"uri", qemu::migration_uri(link)}};
    co_await qmp_->execute("migrate-incoming", std::move(arguments), command_patience);
    lost_ = std::move(lost);
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::peer, lost_reason_);
    }
}

asio::awaitable<void> QemuIncoming::connect(milliseconds patience) {
    Qmp::Events events;
    events.on_event = [this](const std::string& event, const Json& data) { on_event(event, data); };
    events.on_close = [this] { lose("QEMU has ended"); };
    std::string name = "QEMU of " + spec_.vm;
    qmp_ = co_await Qmp::connect(std::move(name), spec_.monitor, patience, std::move(events));
}

// Who listens at the monitor is its process, as long as a connection stands. None: nobody does, for
// certain. Throws Error where that can't be told.
UniqueFd QemuIncoming::find_process() const {
    try {
        const UniqueFd socket = connect_unix(spec_.monitor);
        ucred peer{};
        socklen_t length = sizeof peer;
        if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
            throw_errno(spec_.monitor);
        }
        return open_pidfd(peer.pid);
    } catch (const Error& error) {
        const int why = error.sys_errno();
        if (why != ENOENT && why != ECONNREFUSED && why != ESRCH) {
            throw;
        }
    }
    return {};
}

asio::awaitable<bool> QemuIncoming::adopt(milliseconds patience) {
    const auto executor = co_await asio::this_coro::executor;
    changed_ = std::make_unique<Notifier>(executor);
    may_have_run_ = true; // another agent has told it, or not
    process_ = find_process();
    if (!process_) {
        lost_reason_ = fmt::format("there is no QEMU of {} any more", spec_.vm);
        state_ = "ended";
        co_return false;
    }
    co_await connect(patience);
    Json none = Json::object();
    const Json status = co_await qmp_->execute("query-status", none, command_patience);
    const Json migration = co_await qmp_->execute("query-migrate", none, command_patience);
    state_ = status.value("status", "unknown");
    status_ = migration.value("status", "");
    loaded_ = state_ == "running" || (state_ != "inmigrate" && holds_enough(status_));
    co_return true;
}

asio::awaitable<void> QemuIncoming::wait_for_monitor(Deadline deadline) {
    for (;;) {
        int error = 0;
        try {
            const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
            co_await connect(left);
            co_return;
        } catch (const Error& failure) {
            error = failure.sys_errno();
            if (error != ENOENT && error != ECONNREFUSED && failure.kind() != ErrorKind::peer) {
                throw;
            }
        }
        lost_reason_.clear();
        if (child_->wait(milliseconds(0))) {
            child_.reset();
            throw Error(ErrorKind::state, fmt::format("QEMU ended at its start: {}", end_of_log()));
        }
        if (Clock::now() > deadline) {
            throw Error(
                ErrorKind::timeout,
                fmt::format(
                    "QEMU does not open its monitor {} ({}): the template's command must have "
                    "-qmp unix:{{qmp}},server=on,wait=off",
                    spec_.monitor,
                    std::strerror(error)));
        }
        const milliseconds moment(20); // nothing tells when a socket appears
        co_await sleep_for(moment);
    }
}

void QemuIncoming::on_event(const std::string& event, const Json& data) {
    if (event == "MIGRATION") {
        const std::string status = data.value("status", "");
        // It says `setup` of each address that it is told to listen at; a migration that is broken
        // stays so until somebody has come there.
        if (status != "setup" || status_ != qemu::postcopy_broken) {
            status_ = status;
        }
        if (!loaded_) {
            state_ = "incoming: " + status_;
        }
    } else if (event == "SHUTDOWN") {
        lose("QEMU was told to end");
    }
    changed_->notify();
}

void QemuIncoming::lose(const std::string& what) {
    if (lost_reason_.empty()) {
        const std::string said = end_of_log();
        lost_reason_ = said.empty() ? what : fmt::format("{}: {}", what, said);
        state_ = "ended";
    }
    changed_->notify();
    if (const HypervisorLost lost = std::exchange(lost_, nullptr)) {
        lost(lost_reason_);
    }
}

// The last line of this run: QEMU's reason.
std::string QemuIncoming::end_of_log() const {
    std::string text;
    try {
        text = read_file(spec_.log);
    } catch (const Error&) {
        return "";
    }
    text.erase(0, std::min<uint64_t>(log_start_, text.size()));
    while (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    const size_t newline = text.rfind('\n');
    return newline == std::string::npos ? text : text.substr(newline + 1);
}

asio::awaitable<void> QemuIncoming::wait_loaded(Deadline deadline) {
    while (!holds_enough(status_)) {
        if (status_ == "failed" && lost_reason_.empty()) {
            // Its end, and with it the reason in its log, follows at once.
            const Deadline soon = Clock::now() + milliseconds(500);
            co_await qmp_->wait_closed(std::min(soon, deadline));
        }
        if (!lost_reason_.empty()) {
            throw Error(ErrorKind::peer, lost_reason_);
        }
        const bool woken = co_await changed_->wait_until(deadline);
        if (!woken) {
            throw Error(ErrorKind::timeout, "QEMU has not got the whole memory in time");
        }
    }
    qemu::remove_keys(spec_.key_dir);
    // The event comes before the state is set; a command comes after both, but with post-copy,
    // where the state of the devices is still on its way.
    co_await look_at_state();
    while (state_ == "inmigrate") {
        const milliseconds moment(5);
        co_await sleep_for(moment);
        co_await look_at_state();
        if (Clock::now() > deadline) {
            throw Error(ErrorKind::timeout, "QEMU has not got the devices' state in time");
        }
    }
    if (state_ == "running") {
        throw Error(ErrorKind::state, "QEMU runs the guest before it was told to");
    }
    loaded_ = true;
}

asio::awaitable<void> QemuIncoming::look_at_state() {
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::peer, lost_reason_);
    }
    Json none = Json::object();
    const Json found = co_await qmp_->execute("query-status", std::move(none), command_patience);
    state_ = found.value("status", "");
}

// Out of band: a page that its devices wait for may keep all else waiting.
asio::awaitable<MemoryWait> QemuIncoming::accept_again(MemoryLink link) {
    if (!process_) {
        process_ = find_process();
    }
    const Deadline now = Clock::now();
    const bool gone = !process_ || co_await wait_readable(process_.get(), now);
    if (gone) {
        co_return MemoryWait::gone;
    }
    if (!qmp_ || qmp_->closed()) {
        lost_reason_.clear();
        co_await connect(command_patience);
        Json none = Json::object();
        const Json migration =
            co_await qmp_->execute("query-migrate", std::move(none), command_patience);
        status_ = migration.value("status", "");
    }
    if (status_ == "completed") {
        co_return MemoryWait::whole;
    }
    if (!status_.starts_with("postcopy-")) {
        throw Error(ErrorKind::peer,
                    fmt::format("whether the memory is whole is not known: QEMU's migration is in "
                                "state '{}'",
                                status_));
    }
    const Deadline deadline = Clock::now() + command_patience;
    if (status_ != qemu::postcopy_broken) {
        Json none = Json::object();
        co_await qmp_->execute_oob("migrate-pause", std::move(none), command_patience);
        co_await wait_status(qemu::postcopy_broken, deadline);
    }
    qemu::write_key(link, spec_.key_dir);
    Json arguments{{"uri", qemu::migration_uri(link)}};
    co_await qmp_->execute_oob("migrate-recover", std::move(arguments), command_patience);
    co_return MemoryWait::waits;
}

asio::awaitable<void> QemuIncoming::wait_status(std::string wanted, Deadline deadline) {
    while (status_ != wanted) {
        if (!lost_reason_.empty()) {
            throw Error(ErrorKind::state, lost_reason_);
        }
        const bool woken = co_await changed_->wait_until(deadline);
        if (!woken) {
            throw Error(
                ErrorKind::timeout,
                fmt::format("QEMU's migration is in state '{}' and does not go on", status_));
        }
    }
}

asio::awaitable<void> QemuIncoming::run(bool paused, milliseconds patience) {
    if (!lost_reason_.empty()) {
        throw Error(ErrorKind::state, lost_reason_);
    }
    if (!loaded_) {
        throw Error(ErrorKind::state,
                    fmt::format("QEMU does not hold the memory (its state is '{}')", state_));
    }
    if (paused || state_ == "running") {
        lost_ = nullptr;
        co_return;
    }
    const bool could_have_run = std::exchange(may_have_run_, true);
    try {
        Json none = Json::object();
        co_await qmp_->execute("cont", std::move(none), patience);
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::state) { // it has said no
            may_have_run_ = could_have_run;
        }
        throw;
    }
    lost_ = nullptr;
    state_ = "running";
    Json announce{{"initial", 50}, {"max", 550}, {"rounds", 5}, {"step", 100}};
    co_await qmp_->execute("announce-self", std::move(announce), command_patience);
}

asio::awaitable<void> QemuIncoming::destroy(milliseconds patience) {
    lost_ = nullptr;
    qemu::remove_keys(spec_.key_dir);
    if (!process_) {
        co_return;
    }
    const Deadline deadline = Clock::now() + patience;
    const Deadline polite = std::min(deadline, Clock::now() + milliseconds(3000));
    if (qmp_ && !qmp_->closed()) {
        try {
            Json none = Json::object();
            co_await qmp_->execute("quit", std::move(none), milliseconds(1000));
        } catch (const Error&) {
            // It goes the hard way, below.
        }
    }
    bool over = co_await wait_readable(process_.get(), polite);
    if (!over) {
        ::syscall(SYS_pidfd_send_signal, process_.get(), SIGKILL, nullptr, 0);
        over = co_await wait_readable(process_.get(), deadline);
    }
    if (!over) {
        throw Error(ErrorKind::timeout, fmt::format("QEMU of {} does not end", spec_.vm));
    }
    process_.reset();
    child_.reset();
    ::unlink(spec_.monitor.c_str());
    state_ = "ended";
}

} // namespace drover
