// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/verify.h"

#include "common/secrets.h"
#include "migrator/agent_params.h"
#include "migrator/coordinator.h"
#include "migrator/paths.h"
#include "migrator/peer_agent.h"
#include "migrator/run_lock.h"
#include "migrator/serve.h"
#include "nbd-proxy/record_store.h"

#include <thread>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/signal_set.hpp>

#include <signal.h>

namespace drover {

using rpc::Json;

namespace {

constexpr std::chrono::milliseconds agent_patience{5000}, agent_look{50};

} // namespace

Json HashAccess::open(const Json& params) {
    rpc::only_params(params, {"vm", "disks", "psk_key"});
    const NamedDisks named = named_disks_param(params, true);
    const std::string key = hex_param(params, "psk_key", 64);
    close();
    vm_ = named.vm;
    user_ = verify_user_prefix + random_hex(8);
    Json disks = Json::array();
    for (const NamedDisks::Disk& disk : named.disks) {
        const auto served = find_served(vm_, disk.name);
        if (!served) {
            throw Error(ErrorKind::state,
                        fmt::format("disk {}/{} is not being served there", vm_, disk.name));
        }
        // Whoever has a copy of the disk knows it. It is not told to others.
        const auto record = peek_record(paths().disk_state(vm_, disk.name));
        if (!record || record->uuid != disk.uuid) {
            throw Error(ErrorKind::refused,
                        fmt::format("disk {}/{} there is another disk than the one here, by its "
                                    "UUID",
                                    vm_,
                                    disk.name));
        }
        disks_.push_back(disk.name);
        add_psk_key(vm_, disk.name, user_, key);
        // After the key was added: a migration that begins meanwhile drops it, or is seen here.
        refuse_incoming(disk.name);
        disks.push_back({{"name", disk.name}, {"port", served->port}, {"psk_user", user_}});
    }
    return {{"disks", std::move(disks)}};
}

void HashAccess::close() {
    for (const std::string& disk : disks_) {
        remove_psk_key(vm_, disk, user_);
    }
    disks_.clear();
}

// The key would open the exports of the migration as well: whose key a connection has, nbdkit does
// not tell.
void HashAccess::refuse_incoming(const std::string& disk) {
    // An agent that has finished may be a moment from its end.
    for (auto left = agent_patience; left.count() > 0; left -= agent_look) {
        const auto record = peek_record(paths().disk_state(vm_, disk));
        if (!record || record->role == Role::replica) {
            break;
        }
        if (!RunLock(paths().agent_lock(vm_)).is_held()) {
            return;
        }
        std::this_thread::sleep_for(agent_look);
    }
    close();
    throw Error(ErrorKind::state,
                fmt::format("disk {}/{} there belongs to a migration that has not come to its end",
                            vm_,
                            disk));
}

namespace {

// Reads every block at both sides.
constexpr std::chrono::hours verify_patience{24 * 7};

struct Verification {
    asio::any_io_executor executor;
    const SiteConfig& site;
    const VmFile& vm;
    const VerifyOptions& options;
    uint64_t different = 0;

    asio::awaitable<void> run() {
        PeerAgent agent(executor, site, options.peer, PeerAgent::Events());
        co_await agent.start();
        const milliseconds connect = site.timeouts.connect;
        const std::string key = random_hex(32);
        Json disks = Json::array();
        DiskNames names;
        for (const DiskSpec& disk : vm.disks) {
            const std::string uuid = co_await uuid_of(disk.name);
            disks.push_back({{"name", disk.name}, {"uuid", uuid}});
            names.push_back(disk.name);
        }
        Json params{{"vm", vm.name}, {"disks", std::move(disks)}, {"psk_key", key}};
        const Json answer = co_await agent.call("hashes", std::move(params), connect);
        // Ours, not those that it chooses to name: an empty answer would verify nothing.
        const std::vector<DataPort> ports = read_hashes(answer, names);
        for (size_t i = 0; i < names.size(); ++i) {
            co_await compare(names[i], ports[i], key);
        }
        co_await agent.end();
    }

    asio::awaitable<std::string> uuid_of(std::string name) {
        const auto disk =
            connect_peer(executor, "disk " + name, paths().disk_control(vm.name, name), {});
        Json none = Json::object();
        const milliseconds limit = site.timeouts.start;
        const Json status = co_await disk->call("status", std::move(none), limit);
        disk->close("done");
        co_return status.value("uuid", "");
    }

    asio::awaitable<void> compare(std::string name, DataPort there, std::string key) {
        const std::string address = data_address(options.peer);
        const auto disk =
            connect_peer(executor, "disk " + name, paths().disk_control(vm.name, name), {});
        Json to{{"host", address},
                {"port", there.port},
                {"psk_user", there.psk_user},
                {"psk_key", key}};
        Json params{{"to", std::move(to)}};
        Json result = co_await disk->call("verify", std::move(params), verify_patience);
        disk->close("done");
        const uint64_t blocks = result.value("different", uint64_t{0});
        const uint64_t written = result.value("written", uint64_t{0});
        const std::string since =
            written == 0
                ? ""
                : fmt::format(", but for {} that were written since the switchover", written);
        different += blocks;
        result["disk"] = name;
        if (options.json) {
            fmt::print("{}\n", result.dump());
        } else if (blocks == 0) {
            fmt::print("{}/{}: the same in all {} blocks{}\n",
                       vm.name,
                       name,
                       result.value("blocks", uint64_t{0}),
                       since);
        } else {
            fmt::print("{}/{}: {} of {} blocks differ, the first at byte {}{}\n",
                       vm.name,
                       name,
                       blocks,
                       result.value("blocks", uint64_t{0}),
                       result.value("first_different", uint64_t{0}),
                       since);
        }
    }
};

int verify(const SiteConfig& site, const VmFile& vm, const VerifyOptions& options) {
    if (!options.peer.to_uri.empty()) {
        throw Error(ErrorKind::usage,
                    "verify needs drover at the other side: a HOST is expected, not --to");
    }
    asio::io_context context(1);
    Verification verification{context.get_executor(), site, vm, options};
    asio::signal_set signals(context, SIGINT, SIGTERM);
    std::exception_ptr failure;
    signals.async_wait([&](asio::error_code error, int) {
        if (!error) {
            failure = std::make_exception_ptr(Error(ErrorKind::cancelled, "interrupted"));
            context.stop();
        }
    });
    auto done = [&](std::exception_ptr thrown) {
        failure = thrown;
        context.stop();
    };
    asio::co_spawn(context, verification.run(), std::move(done));
    context.run();
    if (failure) {
        std::rethrow_exception(failure);
    }
    return verification.different == 0 ? exit_done : exit_failed;
}

} // namespace

int run_verify(const SiteConfig& site, const VmFile& vm, const VerifyOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    try {
        return verify(site, vm, options);
    } catch (const Error& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return error.kind() == ErrorKind::usage ? exit_usage : exit_failed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return exit_failed;
    }
}

} // namespace drover
