// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/source_disk.h"

#include "migrator/paths.h"
#include "migrator/serve.h"

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds answer_patience{10000};
// For what writes no more than a record.
constexpr milliseconds record_patience{30000};
constexpr milliseconds forward_retry{200};
constexpr unsigned status_interval_ms = 250;
// What a report sums up.
constexpr const char* counted[] = {"sent_bytes", "captured_bytes", "delta_bytes", "zero_bytes"};

bool nobody_there(const Error& error) {
    return error.sys_errno() == ENOENT || error.sys_errno() == ECONNREFUSED;
}

} // namespace

SourceDisk::SourceDisk(asio::any_io_executor executor,
                       const SiteConfig& site,
                       std::string vm,
                       DiskSpec disk,
                       Notifier& changed,
                       std::function<void(const Error&)> failed)
    : executor_(std::move(executor)), site_(site), vm_(std::move(vm)), disk_(std::move(disk)),
      control_(paths().disk_control(vm_, disk_.name)), changed_(changed),
      failed_(std::move(failed)) {}

SourceDisk::~SourceDisk() {
    unwatch();
    if (commands_) {
        commands_->close("the coordinator ends");
    }
}

asio::awaitable<void> SourceDisk::open() {
    try {
        commands_ = connect_peer(executor_, "disk " + name(), control_, {});
    } catch (const Error& error) {
        if (!nobody_there(error)) {
            throw;
        }
        throw Error(ErrorKind::state,
                    fmt::format("disk {} is not being served: `drover serve` does that, and the VM "
                                "must use the socket that it makes",
                                name()));
    }
    co_await refresh();
    const std::string role = status_.value("role", "");
    if (role == "none") {
        throw Error(ErrorKind::state,
                    fmt::format("disk {} is served without a state directory, which can't be "
                                "migrated: serve it with `drover serve`",
                                name()));
    }
    if (role != "owner") {
        throw Error(
            ErrorKind::refused,
            fmt::format("disk {} is not this host's to move: its role is '{}'", name(), role));
    }
}

asio::awaitable<Json> SourceDisk::call(std::string method, Json params, milliseconds patience) {
    return commands_->call(std::move(method), std::move(params), patience);
}

asio::awaitable<Json>
SourceDisk::call_aside(std::string method, Json params, milliseconds patience) {
    const auto aside = co_await connect_aside();
    struct Close {
        RpcPeer& peer;
        ~Close() { peer.close("done"); }
    } close{*aside};
    Json result = co_await aside->call(std::move(method), std::move(params), patience);
    co_return result;
}

// Its guest waits for a disk whose process has died, and so does whoever asks what became of it.
asio::awaitable<std::shared_ptr<RpcPeer>> SourceDisk::connect_aside() {
    try {
        co_return connect_peer(executor_, "disk " + name(), control_, {});
    } catch (const Error& error) {
        if (!nobody_there(error)) {
            throw;
        }
    }
    std::function<void()> work = [this] {
        start_disk(site_, vm_, ServeDisk{disk_.name, disk_.store});
    };
    co_await on_a_thread(std::move(work));
    co_return connect_peer(executor_, "disk " + name(), control_, {});
}

asio::awaitable<void> SourceDisk::refresh() {
    Json none = Json::object();
    const Json status = co_await commands_->call("status", std::move(none), answer_patience);
    keep_status(status);
}

asio::awaitable<void> SourceDisk::watch() {
    RpcPeer::Events events;
    events.on_notification = [this](const rpc::Request& notification) {
        if (notification.method == "status") {
            take_status(notification.params);
        }
    };
    events.on_close = [this](const std::string& reason) {
        why_ = fmt::format("disk {}: its nbdkit has ended ({})", name(), reason);
        if (!may_end_) {
            fail(Error(ErrorKind::io, why_));
            return;
        }
        ended_ = true;
        status_["replication"] = nullptr;
        changed_.notify();
    };
    watcher_ = connect_peer(executor_, "disk " + name(), control_, std::move(events));
    Json interval{{"interval_ms", status_interval_ms}};
    co_await watcher_->call("subscribe", std::move(interval), answer_patience);
}

asio::awaitable<void> SourceDisk::revive() {
    if (!restarts_.worth_it(Clock::now())) {
        throw Error(ErrorKind::io,
                    fmt::format("{}, again and again; its log is {}",
                                why_,
                                paths().disk_log(vm_, disk_.name)));
    }
    for (const char* const key : counted) {
        counted_before_[key] += number(key);
    }
    last_replication_ = Json::object();
    had_link_ = false;
    commands_ = co_await connect_aside();
    co_await refresh();
    if (status_.value("role", "") != "owner") {
        throw Error(
            ErrorKind::state,
            fmt::format("disk {}: its role is '{}' now", name(), status_.value("role", "")));
    }
    ended_ = false;
    co_await watch();
}

void SourceDisk::unwatch() {
    failed_ = nullptr;
    if (watcher_) {
        watcher_->close("the coordinator ends");
    }
}

void SourceDisk::keep_status(const Json& status) {
    status_ = status;
    const Json replication = status.value("replication", Json());
    if (replication.is_object()) {
        last_replication_ = replication;
    }
    changed_.notify();
}

void SourceDisk::take_status(const Json& status) {
    keep_status(status);
    if (phase() == "failed") {
        fail(Error(ErrorKind::peer, fmt::format("disk {}: {}", name(), error())));
    }
    had_link_ = had_link_ || (!phase().empty() && phase() != "connecting");
}

void SourceDisk::fail(const Error& error) {
    changed_.notify();
    if (const auto failed = std::exchange(failed_, nullptr)) {
        failed(error);
    }
}

// --- what a switchover and a recovery ask for (sides.h)

asio::awaitable<DiskStanding> SourceDisk::standing() {
    std::optional<Json> status;
    try {
        Json none = Json::object();
        status = co_await call_aside("status", std::move(none), answer_patience);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::peer) {
            throw;
        }
    }
    if (!status) { // its process died while it was asked
        Json none = Json::object();
        status = co_await call_aside("status", std::move(none), answer_patience);
    }
    keep_status(*status);
    co_return standing_of(*status);
}

asio::awaitable<DiskAtSource::Quiesced> SourceDisk::quiesce(bool hold, std::string token_hash) {
    const milliseconds limit = site_.timeouts.handover;
    Json params{{"hold", hold}, {"timeout_ms", limit.count()}};
    if (!token_hash.empty()) {
        params["token_hash"] = token_hash;
    }
    if (!forward_target.is_null()) {
        params["forward"] = forward_target;
    }
    const Json answer = co_await call("quiesce", std::move(params), limit + record_patience);
    Quiesced quiesced;
    quiesced.id = answer.at("quiesce").get<std::string>();
    quiesced.token_hash = answer.at("token_hash").get<std::string>();
    quiesced.lsn = answer.at("lsn").get<uint64_t>();
    made_token_hash_ = quiesced.token_hash;
    changed_.notify();
    co_return quiesced;
}

// The plugin tells it as soon as the quiesce begins: the others drain beside this one.
asio::awaitable<std::string> SourceDisk::token_hash() {
    const milliseconds limit = site_.timeouts.handover;
    const Deadline deadline = Clock::now() + limit;
    for (;;) {
        const Json replication = status_.value("replication", Json());
        const std::string now = phase();
        if (!made_token_hash_.empty()) {
            co_return made_token_hash_;
        }
        if ((now == "quiescing" || now == "handed_over") &&
            replication.value("token_hash", Json()).is_string()) {
            co_return replication["token_hash"].get<std::string>();
        }
        const bool woken = co_await changed_.wait_until(deadline);
        if (!woken) {
            throw_timeout(fmt::format("disk {}: its handover", name()), limit);
        }
    }
}

asio::awaitable<std::string> SourceDisk::fence(std::string quiesce, std::string first_token) {
    Json params = Json::object();
    if (quiesce.empty()) {
        const Json again = co_await call_aside("fence", std::move(params), record_patience);
        co_return again.at("token").get<std::string>();
    }
    params["quiesce"] = quiesce;
    if (!refusal_hash.empty()) {
        params["refusal_hash"] = refusal_hash;
    }
    if (!first_token.empty()) {
        params["token"] = first_token;
    }
    if (!forward_target.is_null()) {
        params["forward"] = forward_target;
    }
    const Json answer = co_await call("fence", std::move(params), record_patience);
    co_return answer.at("token").get<std::string>();
}

asio::awaitable<void> SourceDisk::cancel() {
    Json none = Json::object();
    co_await call_aside("cancel", none, record_patience);
    if (!commands_ || commands_->closed()) {
        co_return;
    }
    // What was asked for before on the other connection has been done now; a `replicate` may have
    // been among it.
    co_await refresh();
    if (has_leftover()) {
        co_await call_aside("cancel", none, record_patience);
    }
}

asio::awaitable<void> SourceDisk::unfence(std::string refusal_token) {
    Json params{{"refusal_token", refusal_token}};
    co_await call_aside("unfence", std::move(params), record_patience);
}

asio::awaitable<void> SourceDisk::unfence_by_force() {
    Json params{{"force", true}, {"migration", migration}};
    co_await call_aside("unfence", std::move(params), record_patience);
}

asio::awaitable<void> SourceDisk::supersede(uint64_t generation) {
    Json params{{"migration", migration}, {"generation", generation}};
    co_await call_aside("supersede", std::move(params), record_patience);
}

// Its client waits: a link that breaks right now is tried again.
asio::awaitable<void> SourceDisk::forward() {
    const Deadline deadline = Clock::now() + site_.timeouts.handover;
    for (;;) {
        try {
            Json none = Json::object();
            co_await call_aside("forward", std::move(none), record_patience);
            co_return;
        } catch (const Error& error) {
            if (Clock::now() > deadline ||
                (error.kind() != ErrorKind::peer && error.kind() != ErrorKind::io)) {
                throw;
            }
        }
        co_await sleep_for(forward_retry);
    }
}

asio::awaitable<void> SourceDisk::finish() {
    Json params{{"migration", migration}};
    co_await call_aside("finish", std::move(params), record_patience);
}

std::string SourceDisk::phase() const {
    const Json replication = status_.value("replication", Json());
    return replication.is_object() ? replication.value("phase", "") : "";
}

uint64_t SourceDisk::number(const char* key) const {
    const Json value = last_replication_.value(key, Json());
    return value.is_number_unsigned() ? value.get<uint64_t>() : 0;
}

uint64_t SourceDisk::total(const char* key) const {
    const auto before = counted_before_.find(key);
    return number(key) + (before == counted_before_.end() ? 0 : before->second);
}

std::string SourceDisk::error() const {
    const Json replication = status_.value("replication", Json());
    const Json reason = replication.is_object() ? replication.value("error", Json()) : Json();
    return reason.is_string() ? reason.get<std::string>() : "its replication has failed";
}

bool SourceDisk::ready() const {
    const std::string now = phase();
    return now == "ready" || now == "in_sync";
}

} // namespace drover
