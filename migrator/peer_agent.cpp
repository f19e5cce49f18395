// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/peer_agent.h"

#include "migrator/source_disk.h"

namespace drover {
namespace {

using rpc::Json;

constexpr uint64_t protocol_version = 2;
// For what writes no more than records there, and a way to it and back.
constexpr milliseconds call_patience{30000};
// Another agent may have to end first, and disks to be started.
constexpr milliseconds take_over_patience{60000};
// A peer behind a dead link must not keep the clean-up here waiting for long.
constexpr milliseconds refuse_patience{40000};
constexpr milliseconds end_patience{5000};
constexpr milliseconds beat_interval{5000};

} // namespace

PeerAgent::PeerAgent(asio::any_io_executor executor,
                     const SiteConfig& site,
                     const PeerOptions& peer,
                     Events events)
    : executor_(std::move(executor)), site_(site), peer_(peer), events_(std::move(events)) {}

void PeerAgent::about(std::string migration, Json vm, bool disk_only) {
    migration_ = std::move(migration);
    vm_ = std::move(vm);
    disk_only_ = disk_only;
    disks_.clear();
    for (const Json& disk : vm_.at("disks")) {
        disks_.push_back(disk.at("name").get<std::string>());
    }
}

asio::awaitable<void> PeerAgent::start() {
    RpcPeer::Events events;
    events.on_notification = [this](const rpc::Request& request) { take_notice(request); };
    events.on_close = [this](const std::string& reason) {
        if (events_.lost) {
            events_.lost(fmt::format("the agent at {} is gone: {}", peer_.host, reason));
        }
    };
    doubtful_ = acts_ = false;
    process_ = std::make_unique<AgentProcess>(executor_,
                                              agent_command(peer_.rsh, peer_.host),
                                              "agent at " + peer_.host,
                                              std::move(events));
    if (events_.started) {
        events_.started(process_->pid());
    }
    beat_ = std::make_unique<asio::steady_timer>(executor_);
    beat();
    Json params{{"version", protocol_version}, {"program_version", DROVER_VERSION}};
    const milliseconds limit = site_.timeouts.connect;
    const Json hello = co_await call("hello", std::move(params), limit);
    read_hello(hello, protocol_version, peer_.host);
    program_version_ = read_program_version(hello);
}

void PeerAgent::take_notice(const rpc::Request& request) const {
    const AgentNotice notice = read_notice(request);
    const std::string text = peer_.host + ": " + notice.text;
    if (notice.kind == AgentNotice::Kind::log && events_.log) {
        events_.log(notice.level, text);
    } else if (notice.kind == AgentNotice::Kind::event && events_.lost) {
        events_.lost(text);
    }
}

// So that the agent can tell a link that is idle from one that is dead.
void PeerAgent::beat() {
    beat_->expires_after(beat_interval);
    beat_->async_wait([this](asio::error_code error) {
        if (!error && connected()) {
            tell_alive();
            beat();
        }
    });
}

void PeerAgent::tell_alive() {
    process_->notify("alive", Json{{"patience_s", patience_.count()}});
}

void PeerAgent::wait_for_us(std::chrono::seconds patience) {
    patience_ = patience;
    if (connected()) {
        tell_alive();
    }
}

asio::awaitable<Json> PeerAgent::call(std::string method, Json params, milliseconds patience) {
    if (!process_) {
        throw Error(ErrorKind::peer, fmt::format("no agent was started at {}", peer_.host));
    }
    if (method == "prepare") {
        acts_ = true; // whatever comes back
    }
    try {
        Json result = co_await process_->call(std::move(method), std::move(params), patience);
        co_return result;
    } catch (const Error& error) {
        if (error.kind() == ErrorKind::timeout || error.kind() == ErrorKind::peer) {
            doubtful_ = true;
        }
        throw Error(error.kind(), printable(error.what()), error.sys_errno());
    }
}

// What may be asked for again is: of another agent, where this one has ended.
asio::awaitable<Json>
PeerAgent::call_acting(std::string method, Json params, milliseconds patience) {
    const bool was_connected = connected();
    try {
        Json result = co_await call_once(method, params, patience);
        co_return result;
    } catch (const Error&) {
        if (!was_connected || connected()) {
            throw;
        }
    }
    Json result = co_await call_once(method, params, patience);
    co_return result;
}

// By an agent that is known to answer and to act for this migration.
asio::awaitable<Json> PeerAgent::call_once(std::string method, Json params, milliseconds patience) {
    if (!connected() || doubtful_) {
        process_.reset();
        co_await start();
    }
    if (!acts_ && method != "take_over") {
        co_await take_over();
    }
    Json result = co_await call(std::move(method), std::move(params), patience);
    co_return result;
}

asio::awaitable<MemoryAgain> PeerAgent::memory_again(std::string psk_key) {
    Json params{{"psk_key", std::move(psk_key)}};
    const Json answer = co_await call_acting("memory_again", std::move(params), call_patience);
    co_return read_memory_again(answer);
}

asio::awaitable<void> PeerAgent::end() {
    beat_.reset();
    if (process_) {
        const auto process = std::move(process_);
        co_await process->end(end_patience);
    }
}

// --- sides.h

asio::awaitable<std::vector<DiskStanding>> PeerAgent::take_over() {
    Json params{{"migration", migration_}, {"vm", vm_}, {"disk_only", disk_only_}};
    const Json answer = co_await call_acting("take_over", std::move(params), take_over_patience);
    std::vector<DiskStanding> standings = read_standings(answer, "take_over", disks_);
    acts_ = true;
    co_return standings;
}

asio::awaitable<void> PeerAgent::loaded() {
    Json none = Json::object();
    const milliseconds limit = site_.timeouts.handover;
    co_await call("loaded", std::move(none), limit);
}

asio::awaitable<void> PeerAgent::promote(std::string token) {
    Json params{{"token", token}};
    co_await call("promote", std::move(params), call_patience);
}

asio::awaitable<void> PeerAgent::run(bool paused) {
    Json params{{"paused", paused}};
    co_await call("run", std::move(params), call_patience);
}

asio::awaitable<std::vector<std::string>> PeerAgent::refuse() {
    Json none = Json::object();
    const Json answer = co_await call_acting("refuse", std::move(none), refuse_patience);
    co_return read_refuse(answer, disks_);
}

asio::awaitable<void> PeerAgent::supersede(uint64_t generation) {
    Json params{{"generation", generation}};
    co_await call_acting("supersede", std::move(params), call_patience);
}

asio::awaitable<void> PeerAgent::finish() {
    Json none = Json::object();
    co_await call_acting("finish", std::move(none), call_patience);
}

} // namespace drover
