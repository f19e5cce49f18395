// SPDX-License-Identifier: GPL-2.0-or-later
// The process around a migration: its event loop, signals, lock and control socket.
#include "migrator/coordinator.h"

#include "common/privilege.h"
#include "migrator/guardian.h"
#include "migrator/migration.h"
#include "migrator/paths.h"
#include "migrator/recover.h"

#include <list>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/signal_set.hpp>

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

// paths().migrate_socket(VM): `abort`, `status`, `set`.
class ControlSocket {
public:
    ControlSocket(asio::io_context& context, const std::string& vm, Migration& migration)
        : context_(context), path_(paths().migrate_socket(vm)), migration_(migration),
          acceptor_(context) {
        make_directories(paths().vm_run(vm), 0755);
        ::unlink(path_.c_str()); // of one that died: we hold the lock
        acceptor_.open();
        const mode_t before = ::umask(0177);
        asio::error_code error;
        acceptor_.bind(asio::local::stream_protocol::endpoint(path_), error);
        ::umask(before);
        if (error) {
            throw Error(ErrorKind::io, fmt::format("{}: {}", path_, error.message()));
        }
        acceptor_.listen();
        accept();
    }
    ~ControlSocket() {
        ::unlink(path_.c_str());
        for (const auto& peer : std::list(peers_)) { // each takes itself off
            peer->close("the coordinator ends");
        }
    }

    // What was answered last is on its way.
    asio::awaitable<void> flush() {
        for (const auto& peer : std::list(peers_)) {
            const milliseconds moment(500);
            co_await peer->flush(moment);
        }
    }

private:
    void accept() {
        acceptor_.async_accept(
            [this](asio::error_code error, asio::local::stream_protocol::socket socket) {
                if (error) {
                    return;
                }
                UniqueFd peer(socket.release());
                if (may_control(peer.get())) {
                    serve(std::move(peer));
                }
                accept();
            });
    }

    void serve(UniqueFd input) {
        UniqueFd output(::fcntl(input.get(), F_DUPFD_CLOEXEC, 0));
        if (!output) {
            return;
        }
        const auto place = peers_.insert(peers_.end(), nullptr);
        RpcPeer::Events events;
        events.on_request = [this, place](rpc::Request request) {
            const Json id = request.id;
            const auto peer = *place;
            auto done = [peer, id](std::exception_ptr failure, Json result) {
                try {
                    if (failure) {
                        std::rethrow_exception(failure);
                    }
                    peer->reply(id, std::move(result));
                } catch (const Error& error) {
                    peer->reply(id, error);
                } catch (const std::exception& error) {
                    peer->reply(id, Error(ErrorKind::state, error.what()));
                }
            };
            asio::co_spawn(
                context_, answer(request.method, std::move(request.params)), std::move(done));
        };
        events.on_close = [this, place](const std::string&) { peers_.erase(place); };
        *place = RpcPeer::create(context_.get_executor(),
                                 "control socket",
                                 std::move(input),
                                 std::move(output),
                                 std::move(events));
    }

    asio::awaitable<Json> answer(std::string method, Json params) {
        if (method == "status") {
            rpc::only_params(params, {});
            co_return migration_.status();
        }
        if (method == "abort") {
            rpc::only_params(params, {});
            co_await migration_.abort("drover abort");
            co_return Json::object();
        }
        if (method == "set") {
            rpc::only_params(params, {"downtime_ms", "max_bandwidth"});
            const auto downtime = rpc::optional_uint_param(params, "downtime_ms");
            const auto bandwidth = rpc::optional_uint_param(params, "max_bandwidth");
            co_await migration_.set(downtime, bandwidth);
            co_return Json::object();
        }
        throw Error(ErrorKind::usage, fmt::format("no such method: '{}'", method));
    }

    asio::io_context& context_;
    const std::string path_;
    Migration& migration_;
    asio::local::stream_protocol::acceptor acceptor_;
    std::list<std::shared_ptr<RpcPeer>> peers_;
};

asio::awaitable<int> run_to_end(Migration& migration, ControlSocket& control) {
    const int status = co_await migration.run();
    // `abort` is answered when the migration is over, which is now.
    const milliseconds moment(20);
    co_await sleep_for(moment);
    co_await control.flush();
    co_return status;
}

void on_signal(asio::signal_set& signals, Migration& migration) {
    signals.async_wait([&signals, &migration](asio::error_code error, int number) {
        if (error) {
            return;
        }
        const std::string name = number == SIGINT   ? "SIGINT"
                                 : number == SIGHUP ? "SIGHUP"
                                                    : "SIGTERM";
        if (!migration.request_stop(Error(ErrorKind::cancelled, "aborted by " + name))) {
            fmt::print(stderr, "drover: {}: too late, or on its way back already\n", name);
        }
        on_signal(signals, migration);
    });
}

int migrate(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options) {
    const RunLock lock = lock_coordinator(vm.name, "migrate");
    if (!options.dry_run) {
        if (const auto status = recover_at_start(site, vm)) {
            return *status;
        }
    }
    asio::io_context context(1);
    std::optional<GuardianLink> guardian;
    if (!options.dry_run) {
        guardian.emplace(context.get_executor(), vm);
    }
    Migration migration(context.get_executor(), site, vm, options);
    ControlSocket control(context, vm.name, migration);
    asio::signal_set signals(context, SIGINT, SIGTERM);
    if (::signal(SIGHUP, SIG_IGN) != SIG_IGN) { // else: nohup
        signals.add(SIGHUP);
    }
    on_signal(signals, migration);

    int status = exit_failed;
    std::exception_ptr broken;
    auto done = [&](std::exception_ptr failure, int result) {
        broken = failure;
        status = result;
        context.stop();
    };
    asio::co_spawn(context, run_to_end(migration, control), std::move(done));
    try {
        context.run();
        if (broken) {
            std::rethrow_exception(broken);
        }
    } catch (const std::exception& error) { // which nobody has foreseen
        if (!migration.may_be_fenced()) {
            throw;
        }
        fmt::print(stderr,
                   "drover: {0}: {1}. Its disks may have been given up here, and where it belongs "
                   "is not known; its guardian, or `drover recover {0}`, finds it out\n",
                   vm.name,
                   error.what());
        return exit_recover;
    }
    return status;
}

} // namespace

int run_migrate(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    try {
        return migrate(site, vm, options);
    } catch (const Error& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return error.kind() == ErrorKind::usage ? exit_usage : exit_failed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return exit_failed;
    }
}

} // namespace drover
