// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/guardian.h"

#include "common/process.h"
#include "migrator/cli.h"
#include "migrator/dns_change.h"
#include "migrator/paths.h"
#include "migrator/recover.h"
#include "migrator/source_recovery.h"
#include "migrator/vm_file.h"

#include <array>
#include <ctime>
#include <filesystem>

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr int socket_number = 3;
// Enough for one that somebody ends by mistake; not for one that can't live.
constexpr unsigned most_starts = 10;
constexpr milliseconds first_pause{500}, last_pause{60000};
// How long it goes on only to have the destination clean up.
constexpr std::chrono::minutes clean_up_patience{10};

void log(const std::string& text) {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    std::array<char, 32> when{};
    std::strftime(when.data(), when.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    fmt::print("{} {}\n", when.data(), text);
    std::fflush(stdout);
}

// By its name where it still has that: an update may have replaced it.
std::string own_program() {
    const std::string link = "/proc/self/exe";
    std::error_code error;
    const std::filesystem::path path = std::filesystem::read_symlink(link, error);
    return !error && std::filesystem::exists(path, error) ? path.string() : link;
}

void wait_for_end_of_coordinator() {
    char byte = 0;
    while (::read(socket_number, &byte, 1) > 0 || errno == EINTR) {
    }
}

// The migration that has to be recovered; "" if there is none.
std::string unfinished(const std::string& vm) {
    const auto journal = read_journal(paths().journal(vm));
    return journal && !journal->over() && journal->text("side") == "source"
               ? journal->text("migration")
               : "";
}

void pause_before_next(milliseconds& pause) {
    ::usleep(static_cast<useconds_t>(pause.count() * 1000));
    pause = std::min(2 * pause, last_pause);
}

void log_result(const SourceRecovery::Result& result) {
    for (const std::string& trouble : result.troubles) {
        log("warning: " + trouble);
    }
    log(result.text);
}

// Until it is recovered, by us or by somebody else.
void recover_to_end(const SiteConfig& site, const VmFile& vm) {
    const std::string migration = unfinished(vm.name);
    if (migration.empty()) {
        return;
    }
    log(fmt::format("the coordinator of migration {} has ended before its end", migration));
    const Deadline clean_up_end = Clock::now() + clean_up_patience;
    milliseconds pause = first_pause;
    do {
        const auto result = recover_if_free(site, vm, migration, "guardian");
        if (result) {
            log_result(*result);
            const bool only_clean_up = result->verdict != Verdict::undecided && !result->stuck;
            if (!result->owed || (only_clean_up && Clock::now() > clean_up_end)) {
                return;
            }
        }
        pause_before_next(pause);
    } while (unfinished(vm.name) == migration);
}

// What the migration, however it has ended, could not do at the DNS server.
void settle_names(const SiteConfig& site, const VmFile& vm) {
    const auto journal = read_journal(paths().journal(vm.name));
    const Deadline end = Clock::now() + dns_patience;
    milliseconds pause = first_pause;
    while (journal && Clock::now() < end) {
        try {
            if (settle_names_if_free(site, vm, journal->text("migration"), log)) {
                return;
            }
        } catch (const std::exception& error) {
            log(error.what());
        }
        pause_before_next(pause);
    }
}

} // namespace

struct GuardianLink::Connection {
    explicit Connection(const asio::any_io_executor& executor, int fd) : descriptor(executor, fd) {}
    asio::posix::stream_descriptor descriptor;
};

GuardianLink::GuardianLink(asio::any_io_executor executor, const VmFile& vm)
    : executor_(std::move(executor)), vm_name_(vm.name), vm_path_(vm.path) {
    start();
}

GuardianLink::~GuardianLink() {
    const auto connection = std::move(connection_);
    asio::error_code ignored;
    connection->descriptor.close(ignored);
}

void GuardianLink::start() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        throw_errno("socketpair");
    }
    UniqueFd ours(ends[0]);
    const UniqueFd theirs(ends[1]);
    SpawnOptions options;
    options.argv = {own_program(), "guardian", vm_path_};
    options.fds = {{theirs.get(), socket_number}};
    options.log_file = paths().vm_state(vm_name_) + "/guardian.log";
    options.detached = true;
    spawn(options);
    ++starts_;
    connection_ = std::make_shared<Connection>(executor_, ours.release());
    watch();
}

// It never says anything: what can be read is its end.
void GuardianLink::watch() {
    const std::weak_ptr<Connection> mine = connection_;
    connection_->descriptor.async_wait(
        asio::posix::stream_descriptor::wait_read, [this, mine](asio::error_code error) {
            if (error || mine.expired() || starts_ >= most_starts) {
                return;
            }
            try {
                start();
            } catch (const Error& failure) {
                fmt::print(stderr, "drover: warning: no guardian: {}\n", failure.what());
            }
        });
}

int run_guardian(const SiteConfig& site, const std::string& vm_path) {
    for (const int number : {SIGHUP, SIGINT, SIGPIPE}) {
        ::signal(number, SIG_IGN);
    }
    wait_for_end_of_coordinator();
    const VmFile vm = load_vm_file(site, vm_path, HostCheck::may_be_missing);
    recover_to_end(site, vm);
    settle_names(site, vm);
    return exit_done;
}

} // namespace drover
