// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/source_control.h"

#include "common/error.h"
#include "common/secrets.h"

#include <utility>

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;
using std::chrono::milliseconds;

constexpr uint64_t default_quiesce_timeout_ms = 60'000;
constexpr milliseconds longest_reconnect = std::chrono::hours(24 * 365);

const char* to_string(Sender::Phase phase) {
    switch (phase) {
    case Sender::Phase::connecting:
        return "connecting";
    case Sender::Phase::bulk:
        return "bulk";
    case Sender::Phase::ready:
        return "ready";
    case Sender::Phase::in_sync:
        return "in_sync";
    case Sender::Phase::failed:
        return "failed";
    }
    return "failed";
}

Compress compress_param(const Json& params) {
    const std::string mode = rpc::optional_string_param(params, "compress").value_or("auto");
    if (mode != "auto" && mode != "zstd" && mode != "none") {
        throw Error(ErrorKind::usage, "parameter 'compress': auto, zstd or none is expected");
    }
    return mode == "auto" ? Compress::automatic : mode == "zstd" ? Compress::zstd : Compress::none;
}

void set_connections(SenderOptions& sending, const Json& params) {
    constexpr uint64_t most = 16;
    const Json number = params.value("connections", Json("auto"));
    if (number == "auto") {
        sending.most_connections = most;
        return;
    }
    if (!number.is_number_unsigned() || number < 1 || number > most) {
        throw Error(ErrorKind::usage,
                    fmt::format("parameter 'connections': auto or 1 to {} is expected", most));
    }
    sending.connections = sending.most_connections = number.get<unsigned>();
}

} // namespace

SourceControl::SourceControl(const DiskContext& context, Forwarding& forwarding)
    : context_(context), forwarding_(forwarding) {
    for (const char* const name : {stream_key, verify_key, early_key}) {
        ::unlink((context.options.state_dir + "/" + name).c_str());
    }
}

SourceControl::~SourceControl() {
    end_stream();
    if (aside_.joinable()) {
        aside_.join();
    }
}

std::shared_ptr<Sender> SourceControl::sender() const {
    const std::lock_guard lock(mutex_);
    return sender_;
}

Json SourceControl::replicate(const Json& params) {
    rpc::only_params(params,
                     {"migration",
                      "generation",
                      "to",
                      "connections",
                      "downtime_ms",
                      "max_bandwidth",
                      "compress",
                      "compare",
                      "reconnect_ms"});
    const std::lock_guard one(context_.control);
    if (tracked_) {
        throw Error(ErrorKind::state, "a replication is under way: `cancel` it first");
    }
    if (context_.options.read_only || context_.backend.read_only()) {
        throw Error(ErrorKind::state,
                    "the disk is served read-only: nothing of it can be handed over");
    }
    const Json to = params.value("to", Json());
    if (!to.is_object()) {
        throw Error(
            ErrorKind::usage,
            "parameter 'to' is missing: an object with host and port, socket, or uri is expected");
    }
    SenderOptions sending{.migration = parse_migration_id(migration_param(params)).value()};
    set_connections(sending, params);
    const std::string migration = migration_param(params);
    const uint64_t generation = rpc::uint_param(params, "generation");
    const bool again = context_.record.get().migration == migration;
    const Record attempt = context_.record.update(
        [&](const Record& record) { return accept(begin_attempt(record, migration, generation)); });
    sending.stream = {attempt.generation, attempt.stream_counter, 0};
    sending.uuid = uuid_bytes(attempt.uuid);
    sending.downtime_ms =
        rpc::optional_uint_param(params, "downtime_ms").value_or(sending.downtime_ms);
    sending.max_bandwidth = rpc::optional_uint_param(params, "max_bandwidth").value_or(0);
    sending.compress = compress_param(params);
    if (const auto limit = rpc::optional_uint_param(params, "reconnect_ms")) {
        sending.reconnect = milliseconds(std::min<uint64_t>(*limit, longest_reconnect.count()));
    }
    sending.plain = to.contains("uri");
    sending.to = peer_options(context_.options, to, stream_key);
    stream_key_file_ = sending.to.psk_file;

    Source::Limits limits{.log_bytes = context_.options.log_memory,
                          .prefix_order = !sending.plain,
                          .compare_first =
                              rpc::bool_param(params, "compare", false) && !sending.plain};
    const uint64_t granularity = std::max<uint64_t>(4 * KiB, context_.backend.features().minimum);
    tracked_ = std::make_shared<Tracked>(context_.geometry(), granularity, limits);
    cancelled_ = false;
    try {
        const auto sender = std::make_shared<Sender>(
            tracked_, context_.backend, sending, [this] { context_.changed(); });
        tracked_->wake = [weak = std::weak_ptr(sender)] {
            if (const auto strong = weak.lock()) {
                strong->wake();
            }
        };
        {
            const std::lock_guard lock(mutex_);
            sender_ = sender;
        }
        context_.disk.start_tracking(tracked_);
        sender->start();
    } catch (...) {
        end_stream();
        if (!again) { // else it may be tried once more
            context_.record.update([](const Record& now) { return accept(drover::cancel(now)); });
        }
        throw;
    }
    return {{"uuid", attempt.uuid}};
}

void SourceControl::end_stream() {
    std::shared_ptr<Sender> sender;
    {
        const std::lock_guard lock(mutex_);
        sender.swap(sender_);
        quiescing_.clear();
    }
    context_.disk.stop_tracking();
    if (sender) {
        sender->end();
    }
    cancelled_ = true;
    if (tracked_) {
        // A quiesce that waits for its handover.
        const std::lock_guard lock(tracked_->mutex);
        tracked_->changed.notify_all();
    }
    tracked_.reset();
    if (!stream_key_file_.empty()) {
        ::unlink(stream_key_file_.c_str());
        stream_key_file_.clear();
    }
}

Json SourceControl::set(const Json& params) {
    rpc::only_params(params, {"downtime_ms", "max_bandwidth"});
    const std::lock_guard one(context_.control);
    const std::shared_ptr<Sender> sender = this->sender();
    if (!sender) {
        throw Error(ErrorKind::state, "no replication is under way");
    }
    if (const auto downtime = rpc::optional_uint_param(params, "downtime_ms")) {
        sender->set_downtime(*downtime);
    }
    if (const auto bandwidth = rpc::optional_uint_param(params, "max_bandwidth")) {
        sender->set_max_bandwidth(*bandwidth);
    }
    return Json::object();
}

Json SourceControl::quiesce(const Json& params) {
    rpc::only_params(params, {"hold", "token_hash", "forward", "timeout_ms"});
    const bool hold = rpc::bool_param(params, "hold", false);
    const milliseconds timeout(
        rpc::optional_uint_param(params, "timeout_ms").value_or(default_quiesce_timeout_ms));
    const std::string id = random_hex(16);
    std::shared_ptr<Tracked> tracked;
    std::shared_ptr<Sender> sender;
    {
        const std::lock_guard one(context_.control);
        sender = this->sender();
        if (!tracked_ || !sender) {
            throw Error(ErrorKind::state, "no replication is under way");
        }
        tracked = tracked_;
        // By a cancel that found that it may not; one that may comes after this.
        cancelled_ = false;
        QuiesceToken token;
        if (const auto hash = rpc::optional_string_param(params, "token_hash")) {
            token.hash = *hash;
        } else {
            token.token = random_hex(32);
        }
        const Record quiescing = context_.record.update(
            [&](const Record& record) { return accept(drover::quiesce(record, id, token)); });
        {
            const std::lock_guard lock(mutex_);
            quiescing_ = id;
        }
        context_.changed();
        if (const Json to = params.value("forward", Json()); !to.is_null() && !to.contains("uri")) {
            try {
                forwarding_.begin(peer_options(context_.options, to, early_key),
                                  forward_export(quiescing));
            } catch (const std::exception&) {
                // No room for the key, or a thread: it is reached when it is needed.
            }
        }
        if (hold) {
            context_.disk.hold();
            held_ = true;
        }
        const std::lock_guard lock(tracked->mutex);
        tracked->source.begin_handover(bytes_of<32>(from_hex(quiescing.token_hash).value()));
        tracked->source.settle(monotonic_us());
    }
    sender->wake();

    std::optional<Error> failure;
    try {
        wait_for_handover(*tracked, timeout, *sender);
    } catch (const Error& error) {
        failure = error;
    }
    const std::lock_guard one(context_.control);
    if (tracked_ != tracked || context_.record.get().quiesce != id || cancelled_) {
        throw Error(ErrorKind::cancelled, "the switchover was cancelled");
    }
    if (!failure) {
        Lsn lsn;
        {
            const std::lock_guard lock(tracked->mutex);
            lsn = tracked->source.handover_lsn();
        }
        const Record quiesced = context_.record.update(
            [&](const Record& record) { return accept(handover_durable(record, id, lsn)); });
        return {{"quiesce", id}, {"token_hash", quiesced.token_hash}, {"lsn", lsn.v}};
    }
    {
        const std::lock_guard lock(tracked->mutex);
        tracked->source.cancel_handover();
    }
    sender->wake();
    forwarding_.take_back();
    context_.record.update([](const Record& now) { return accept(void_handover(now)); });
    {
        const std::lock_guard lock(mutex_);
        quiescing_.clear();
    }
    if (std::exchange(held_, false)) {
        context_.disk.release();
    }
    throw *failure;
}

void SourceControl::wait_for_handover(Tracked& tracked,
                                      milliseconds timeout,
                                      const Sender& sender) {
    Tracked::Lock lock(tracked.mutex);
    const bool decided = tracked.changed.wait_for(lock, timeout, [&] {
        return cancelled_ || sender.failed() ||
               tracked.source.handover() == Source::Handover::durable ||
               tracked.source.handover() == Source::Handover::voided;
    });
    if (!decided) {
        const Source::Progress progress = tracked.source.progress();
        throw Error(ErrorKind::timeout,
                    fmt::format("the disk did not drain within {} ms: {} dirty, {} on their way",
                                timeout.count(),
                                format_size(progress.dirty_bytes),
                                format_size(progress.lag_bytes)));
    }
    if (cancelled_) {
        throw Error(ErrorKind::cancelled, "the switchover was cancelled");
    }
    if (tracked.source.handover() == Source::Handover::voided) {
        throw Error(
            ErrorKind::state,
            "the disk was written during the switchover: pause the VM first, or quiesce with hold");
    }
    if (tracked.source.handover() != Source::Handover::durable) {
        lock.unlock();
        throw Error(ErrorKind::peer, "replication failed: " + sender.status().error);
    }
}

Json SourceControl::fence(const Json& params) {
    rpc::only_params(params, {"quiesce", "refusal_hash", "token", "forward"});
    const std::lock_guard one(context_.control);
    FenceRequest request{.quiesce_id = rpc::optional_string_param(params, "quiesce").value_or(""),
                         .refusal_hash =
                             rpc::optional_string_param(params, "refusal_hash").value_or(""),
                         .token = rpc::optional_string_param(params, "token").value_or("")};
    if (const Json to = params.value("forward", Json()); !to.is_null()) {
        const NbdClientOptions peer = peer_options(context_.options, to, "forward-psk");
        request.forward = ForwardTarget{
            .host = peer.host,
            .port = static_cast<uint16_t>(peer.host.empty() ? 0 : std::stoul(peer.port)),
            .psk_user = peer.psk_user,
            .key_file = peer.psk_file,
            .uri = peer.uri,
            .socket = peer.socket};
    }
    const auto fenced = [&](const Record& record) {
        return accept(drover::fence(record, request));
    };
    const Record now = context_.record.get();
    fenced(now);
    if (now.stage != Stage::fenced) {
        // Held first: nothing can be written between the look and the record. Should the record not
        // be saved, it stays held until `cancel`.
        const bool held_before = std::exchange(held_, true);
        context_.disk.hold();
        bool good = false;
        if (tracked_) {
            const std::lock_guard lock(tracked_->mutex);
            good = tracked_->source.handover() == Source::Handover::durable;
        }
        if (!good) {
            if (!held_before) {
                held_ = false;
                context_.disk.release();
            }
            throw Error(ErrorKind::state,
                        "the disk was written after the handover: quiesce it again");
        }
        context_.record.update(fenced);
        held_ = false;
        set_aside();
    }
    return {{"token", context_.record.get().token}};
}

void SourceControl::set_aside() {
    if (aside_.joinable()) {
        aside_.join();
    }
    aside_ = std::thread([this] {
        try {
            context_.record.set_aside();
        } catch (const std::exception&) {
            // It may have been taken back since.
        }
    });
}

Json SourceControl::forward(const Json& params) {
    rpc::only_params(params, {});
    const std::lock_guard one(context_.control);
    if (context_.record.get().role != Role::forwarding) {
        throw Error(ErrorKind::state,
                    "this disk does not forward: it was not fenced with `forward`");
    }
    end_stream();
    forwarding_.connect();
    return Json::object();
}

void SourceControl::interrupt() {
    cancelled_ = true;
    if (const std::shared_ptr<Sender> sender = this->sender()) {
        sender->give_up_start();
        sender->notify();
    }
}

Json SourceControl::cancel(const Json& params) {
    rpc::only_params(params, {"quiesce"});
    const std::string quiesce = rpc::optional_string_param(params, "quiesce").value_or("");
    // What waits with the control of the disk in its hands, or would go on waiting, gives up; what
    // may not be cancelled is not disturbed.
    const auto cancelling = [&](const Record& record) {
        return accept(drover::cancel(record, quiesce));
    };
    cancelling(context_.record.get());
    interrupt();
    const std::lock_guard one(context_.control);
    context_.record.update(cancelling);
    forwarding_.take_back();
    // The clients first: the stream may have answers to wait for.
    context_.disk.stop_tracking();
    if (std::exchange(held_, false)) {
        context_.disk.release();
    }
    end_stream();
    return Json::object();
}

Json SourceControl::unfence(const Json& params) {
    rpc::only_params(params, {"refusal_token", "migration", "force"});
    const std::lock_guard one(context_.control);
    if (rpc::bool_param(params, "force", false)) {
        const std::string migration = migration_param(params);
        context_.record.update(
            [&](const Record& record) { return accept(drover::force(record, migration)); });
    } else {
        const std::string token = rpc::string_param(params, "refusal_token");
        context_.record.update(
            [&](const Record& record) { return accept(drover::unfence(record, token)); });
    }
    if (aside_.joinable()) {
        aside_.join();
    }
    context_.record.unfence_image();
    context_.disk.stop_tracking();
    context_.disk.take_back();
    forwarding_.end();
    end_stream();
    return Json::object();
}

// The other side has taken the disk while this one could not be asked.
Json SourceControl::supersede(const Json& params) {
    rpc::only_params(params, {"migration", "generation"});
    const std::lock_guard one(context_.control);
    const std::string migration = migration_param(params);
    const uint64_t generation = rpc::uint_param(params, "generation");
    const auto superseded = [&](const Record& record) {
        return accept(drover::supersede(record, migration, generation));
    };
    superseded(context_.record.get());
    context_.disk.hold();
    context_.record.update(superseded);
    forwarding_.take_back();
    end_stream();
    set_aside();
    return Json::object();
}

Json SourceControl::status(const Record& now) const {
    std::shared_ptr<Sender> sender;
    bool quiescing = false;
    {
        const std::lock_guard lock(mutex_);
        sender = sender_;
        quiescing = !quiescing_.empty();
    }
    if (!sender) {
        return {};
    }
    const Sender::Status sending = sender->status();
    std::string phase = to_string(sending.phase);
    if (now.stage == Stage::fenced) {
        phase = "fenced";
    } else if (sending.phase != Sender::Phase::failed && quiescing) {
        phase = now.stage == Stage::quiesced ? "handed_over" : "quiescing";
    }
    Json slowed = Json::array();
    for (const Throttle::ClientStatus& client : sending.slowed) {
        slowed.push_back({{"client", client.client},
                          {"rate", client.rate},
                          {"share", client.share == 0 ? Json() : Json(client.share)},
                          {"delayed_writes", client.delayed_writes},
                          {"delayed_ms", client.delayed_us / 1000}});
    }
    return {{"phase", phase},
            {"error", sending.error.empty() ? Json() : Json(sending.error)},
            {"dirty_bytes", sending.progress.dirty_bytes},
            {"lag_bytes", sending.progress.lag_bytes},
            {"lag_ms", sending.lag_ms},
            {"lsn", sending.progress.last.v},
            {"applied", sending.progress.applied.v},
            {"durable", sending.progress.durable.v},
            {"captured_bytes", sending.progress.captured_bytes},
            {"delta_bytes", sending.progress.delta_bytes},
            {"zero_bytes", sending.progress.zero_bytes},
            {"same_bytes", sending.progress.same_bytes},
            {"sent_bytes", sending.sent_bytes},
            {"compress",
             {{"level", sending.compressed.level},
              {"raw_bytes", sending.compressed.raw_bytes},
              {"coded_bytes", sending.compressed.coded_bytes}}},
            {"drain_rate", sending.drain_rate},
            {"write_rate", sending.write_rate},
            {"eta_ms", sending.eta_ms ? Json(*sending.eta_ms) : Json()},
            {"connections", sending.connections},
            {"tls", sending.tls},
            {"throttle_limit", sending.throttle_limit ? Json(*sending.throttle_limit) : Json()},
            {"throttle_delay_ms", sending.throttle_delay_us / 1000},
            {"slowed", std::move(slowed)},
            {"token_hash", quiescing ? Json(now.token_hash) : Json()},
            {"elapsed_ms", sending.elapsed_ms}};
}

} // namespace drover
