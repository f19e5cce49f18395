// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/sender.h"

#include "common/error.h"
#include "nbd-proxy/hash_snapshot.h"
#include "nbd-proxy/stream_priority.h"

#include <algorithm>
#include <future>
#include <utility>

namespace drover {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds first_retry{200}, last_retry{2000};
constexpr size_t registered_buffers = 24;
// For an answer while a session is opened. The state's may wait for a worker of the last session,
// whose disk is slow.
constexpr milliseconds answer_limit{30'000};
// The same once the stream is to end, and how soon that is noticed.
constexpr milliseconds goodbye{2000}, ending_tick{100};
// So many sessions without one hash: then what is there is not known, and all is sent.
constexpr unsigned most_fruitless = 3;

// Worth another session: the link was lost, nobody said no.
bool may_come_back(const Error& error) {
    return error.kind() == ErrorKind::timeout ||
           (error.kind() == ErrorKind::peer && error.sys_errno() != ENOSPC &&
            error.sys_errno() != EINVAL && error.sys_errno() != EROFS);
}

std::string place(const NbdClientOptions& to) {
    return !to.uri.empty() ? to.uri : !to.socket.empty() ? to.socket : to.host + ":" + to.port;
}

} // namespace

Sender::Sender(std::shared_ptr<Tracked> tracked,
               Backend& disk,
               SenderOptions options,
               std::function<void()> changed)
    : tracked_(std::move(tracked)), options_(std::move(options)),
      changed_(std::move(changed)), context_{*tracked_,
                                             disk,
                                             std::make_shared<BufferPool>(
                                                 std::max<uint64_t>(
                                                     tracked_->source.limits().frame_bytes,
                                                     tracked_->source.geometry().block_size),
                                                 registered_buffers)},
      downtime_ms_(options_.downtime_ms), rate_(tracked_->source.limits().frame_bytes),
      count_(options_.plain ? 0 : options_.most_connections) {
    context_.plain = options_.plain;
    context_.pacer.set_rate(options_.max_bandwidth);
    if (options_.compress != Compress::none && !options_.plain) {
        context_.compressor = std::make_unique<Compressor>(options_.compress, context_.buffers);
    }
    context_.acknowledged = [this](bool nothing_left) { acknowledged(nothing_left); };
    tracked_->source.start(options_.migration, options_.stream);
    comparing_ = tracked_->source.limits().compare_first;
    context_.holes_known = !disk.features().can_extents;
}

void Sender::give_up_start() {
    const std::lock_guard lock(mutex_);
    if (!started_) {
        interrupt();
    }
}

// With mutex_.
void Sender::interrupt() {
    ending_ = give_up_ = true;
    context_.take_answers = true;
    context_.stop = true;
    stopping_.notify_all();
}

void Sender::end() {
    {
        const std::lock_guard lock(mutex_);
        interrupt();
        for (const auto& link : links_) {
            link->wake();
        }
    }
    if (supervisor_.joinable()) {
        supervisor_.join();
    }
}

void Sender::start() {
    open_session();
    {
        const std::lock_guard lock(mutex_);
        if (ending_) {
            throw Error(ErrorKind::cancelled, "the stream has been ended");
        }
        started_ = true;
    }
    set_phase(Phase::bulk);
    supervisor_ = std::thread([this] { supervise(); });
}

void Sender::wake() {
    const std::lock_guard lock(mutex_);
    for (const auto& link : links_) {
        link->wake();
    }
}

void Sender::set_phase(Phase phase, const std::string& error) {
    {
        const std::lock_guard lock(mutex_);
        if (!error.empty()) {
            error_ = error;
        }
        if (phase_.exchange(phase) == phase) {
            return;
        }
    }
    notify(); // a quiesce must not wait for a stream that has failed
    changed_();
}

void Sender::notify() {
    const std::lock_guard lock(tracked_->mutex);
    tracked_->changed.notify_all();
}

// --- sessions

NbdHandle Sender::connect(const char* export_name) const {
    NbdClientOptions to = options_.to;
    to.block_status = false;
    if (!options_.plain) {
        to.export_name = export_name;
    }
    to.give_up = &give_up_;
    return connect_nbd(to, place(to));
}

// Side by side: a connection takes some ten round trips. Those of the stream have joined the
// session when this returns. Throws what the first one that failed did.
std::vector<NbdHandle> Sender::connect_all(const std::vector<const char*>& export_names) {
    std::vector<std::future<NbdHandle>> opening;
    for (const char* const name : export_names) {
        opening.push_back(std::async(std::launch::async, [this, name] {
            return name == std::string_view("replica") ? join() : connect(name);
        }));
    }
    std::vector<NbdHandle> handles;
    for (std::future<NbdHandle>& one : opening) {
        handles.push_back(one.get());
    }
    return handles;
}

NbdHandle Sender::join() const {
    NbdHandle handle = connect("replica");
    greet(handle.get(), std::nullopt);
    return handle;
}

// libnbd waits for as long as it takes, and a process that is stopped keeps its sockets.
void Sender::await(nbd_handle* handle, int64_t command, const char* what) const {
    using Clock = std::chrono::steady_clock;
    auto deadline = Clock::now() + answer_limit;
    bool ending = false;
    int done = 0;
    while (command >= 0 &&
           (done = nbd_aio_command_completed(handle, static_cast<uint64_t>(command))) == 0) {
        if (!ending && give_up_) {
            ending = true;
            deadline = std::min(deadline, Clock::now() + goodbye);
        }
        const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
        if (left.count() <= 0) {
            throw Error(ending ? ErrorKind::cancelled : ErrorKind::timeout,
                        fmt::format("{}: no answer within {} ms",
                                    what,
                                    (ending ? goodbye : answer_limit).count()),
                        ETIMEDOUT);
        }
        if (nbd_ended(handle) ||
            nbd_poll(handle, static_cast<int>(std::min(left, ending_tick).count())) < 0) {
            break;
        }
    }
    if (done <= 0) {
        throw Error(ErrorKind::peer,
                    fmt::format("{}: {}", what, libnbd_error()),
                    nbd_ended(handle) ? ENOTCONN : nbd_get_errno());
    }
}

ReplicaState Sender::read_state(nbd_handle* handle) const {
    std::array<std::byte, state_size> bytes{};
    await(handle,
          nbd_aio_pread(handle, bytes.data(), bytes.size(), 0, NBD_NULL_COMPLETION, 0),
          "the destination's state");
    std::string why;
    const auto state = decode_state(bytes, &why);
    if (!state) {
        throw Error(ErrorKind::peer, "the destination's state: " + why, EINVAL);
    }
    return *state;
}

void Sender::greet(nbd_handle* handle, std::optional<Lsn> base) const {
    FrameHeader header;
    {
        const std::lock_guard lock(tracked_->mutex);
        header.migration = tracked_->source.migration();
        header.stream = tracked_->source.stream();
    }
    header.open = true;
    header.base = base;
    std::array<std::byte, frame_header_size> frame{};
    encode_frame(frame, header, {});
    await(handle,
          nbd_aio_pwrite(handle, frame.data(), frame.size(), 0, NBD_NULL_COMPLETION, 0),
          "the destination does not take the session");
}

// Two steps, since what is sent from depends on what the destination has: every connection joins
// the session (from then on no frame of an older one is applied), then its state is read, then the
// base is told.
void Sender::open_session() {
    give_up_ = false;
    if (ending_) {
        give_up_ = true;
    }
    std::vector<NbdHandle> handles;
    if (!options_.plain) {
        {
            const std::lock_guard lock(tracked_->mutex);
            tracked_->source.begin_session(tracked_->source.stream().session + 1);
        }
        std::vector<const char*> names(connections_, "replica");
        names.push_back("state");
        handles = connect_all(names);
        const NbdHandle state_handle = std::move(handles.back());
        handles.pop_back();
        const ReplicaState state = read_state(state_handle.get());
        if (state.uuid != options_.uuid || state.migration != options_.migration ||
            state.size != tracked_->source.geometry().disk_size) {
            throw Error(
                ErrorKind::refused, "the destination serves the replica of another disk", EINVAL);
        }
        Lsn base;
        {
            const std::lock_guard lock(tracked_->mutex);
            if (state.stream != tracked_->source.stream() ||
                (had_session_ && state.applied > tracked_->source.progress().last)) {
                throw Error(ErrorKind::refused,
                            "the destination claims to have what was never sent",
                            EINVAL);
            }
            base = tracked_->source.resume(
                state.applied, state.durable, !had_session_ || state.instance == instance_);
        }
        instance_ = state.instance;
        greet(handles[0].get(), base);
    } else {
        handles.push_back(connect(""));
        if (nbd_can_multi_conn(handles[0].get()) > 0) {
            const std::vector<const char*> names(connections_ - 1, "");
            for (NbdHandle& more : connect_all(names)) {
                handles.push_back(std::move(more));
            }
        }
        if (nbd_is_read_only(handles[0].get()) > 0) {
            throw Error(
                ErrorKind::usage, fmt::format("{} is read-only", place(options_.to)), EROFS);
        }
        if (nbd_can_zero(handles[0].get()) <= 0) {
            throw Error(ErrorKind::usage,
                        fmt::format("{} can't write zeroes: serve it with a server that can",
                                    place(options_.to)),
                        EOPNOTSUPP);
        }
        if (static_cast<uint64_t>(nbd_get_size(handles[0].get())) <
            tracked_->source.geometry().disk_size) {
            throw Error(ErrorKind::usage,
                        fmt::format("{} is too small: {} bytes for a disk of {}",
                                    place(options_.to),
                                    nbd_get_size(handles[0].get()),
                                    tracked_->source.geometry().disk_size),
                        ENOSPC);
        }
    }
    comparer_ = open_comparer(!std::exchange(had_session_, true));

    const std::lock_guard lock(mutex_);
    tls_ = nbd_get_tls_negotiated(handles[0].get()) > 0;
    context_.window_ceiling = options_.window_bytes / handles.size();
    for (NbdHandle& handle : handles) {
        links_.push_back(std::make_unique<Link>(context_, std::move(handle), links_.empty()));
    }
}

// One more in the present session.
Link* Sender::add_link(NbdHandle handle) {
    const std::lock_guard lock(mutex_);
    links_.push_back(std::make_unique<Link>(context_, std::move(handle), false));
    connections_ = static_cast<unsigned>(links_.size());
    context_.window_ceiling = options_.window_bytes / links_.size();
    return links_.back().get();
}

// --- what the destination has already

// Null where there is nothing to compare, or no way to.
std::unique_ptr<Comparer> Sender::open_comparer(bool first_session) {
    if (!comparing_) {
        return nullptr;
    }
    if (fruitless_++ < most_fruitless) {
        try {
            return std::make_unique<Comparer>(
                context_, connect("hashes"), hash_seed(options_.uuid));
        } catch (const Error& error) {
            // Later it is the link rather than the destination.
            if (ending_ || !first_session) {
                throw;
            }
        }
    }
    give_up_comparing();
    return nullptr;
}

// What may be there is sent all the same.
void Sender::give_up_comparing() {
    comparing_ = false;
    {
        const std::lock_guard lock(tracked_->mutex);
        tracked_->source.compared_to(tracked_->source.geometry().disk_size);
    }
    wake();
}

// Throws where the connection was lost, which ends the session.
void Sender::compare(Comparer& comparer) {
    try {
        comparing_ = !comparer.run();
        fruitless_ = comparer.has_answers() ? 0 : fruitless_;
    } catch (const Error& error) {
        fruitless_ = comparer.has_answers() ? 0 : fruitless_;
        if (error.sys_errno() == ENOTCONN) {
            throw;
        }
        give_up_comparing();
    }
}

// Until a link ends: keeps the rates and the phase, and makes more of them where that helps.
void Sender::watch_links(const std::atomic<bool>& any_ended,
                         const std::function<void(Link*)>& run_link) {
    std::vector<std::future<NbdHandle>> joining;
    const auto add_those_that_have = [&] {
        std::erase_if(joining, [&](std::future<NbdHandle>& one) {
            if (one.wait_for(milliseconds(0)) != std::future_status::ready) {
                return false;
            }
            try {
                run_link(add_link(one.get()));
            } catch (const std::exception&) {
                // The stream goes on with those that it has.
            }
            return true;
        });
    };
    std::unique_lock lock(mutex_);
    rate_.resume();
    for (auto next = std::chrono::steady_clock::now() + options_.tick; !any_ended && !ending_;) {
        const bool woken =
            stopping_.wait_until(lock, next, [&] { return any_ended || ending_ || came_in_sync_; });
        came_in_sync_ = false;
        lock.unlock();
        if (!woken) {
            next = std::chrono::steady_clock::now() + options_.tick;
            add_those_that_have();
            for (unsigned more = measure(monotonic_us()); more > 0; --more) {
                joining.push_back(std::async(std::launch::async, [this] { return join(); }));
            }
        }
        judge();
        lock.lock();
    }
    give_up_ = true; // who is still joining
}

// Until a link ends. Answers with why; error is its errno, 0 for a stop, and `fatal` if another
// session won't help.
std::string Sender::run_session(int& error) {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::string why;
    bool over = false;
    std::atomic<bool> any_ended{false};
    error = 0;
    const auto end_session = [&](const std::string& reason, int reason_errno, bool connected) {
        const std::lock_guard lock(mutex);
        const std::lock_guard watching(mutex_);
        if (!over) {
            over = true;
            why = reason;
            error = reason_errno;
            context_.take_answers = ending_ || connected;
        }
        any_ended = true;
        stopping_.notify_all();
    };
    const auto run = [&](Link* link) {
        lower_stream_priority();
        std::string reason;
        int reason_errno = 0;
        try {
            link->run();
        } catch (const Error& caught) {
            reason = caught.what();
            reason_errno = caught.sys_errno() != 0 ? caught.sys_errno() : EIO;
        } catch (const std::exception& caught) {
            reason = caught.what();
            reason_errno = EIO;
        }
        end_session(reason, reason_errno, link->connected());
        if (context_.take_answers) {
            link->take_answers();
        }
    };
    const auto run_comparer = [&] {
        lower_stream_priority();
        try {
            compare(*comparer_);
        } catch (const std::exception& caught) {
            end_session(caught.what(), ENOTCONN, comparer_->connected());
        }
    };
    const std::function<void(Link*)> run_link = [&](Link* link) {
        threads.emplace_back(run, link);
    };
    try {
        std::vector<Link*> links;
        {
            const std::lock_guard lock(mutex_);
            for (const auto& link : links_) {
                links.push_back(link.get());
            }
        }
        std::for_each(links.begin(), links.end(), run_link);
        if (comparer_) {
            threads.emplace_back(run_comparer);
        }
    } catch (const std::exception& caught) {
        // Those that run are ended below; the guest's disk goes on.
        const std::lock_guard lock(mutex);
        over = any_ended = true;
        why = caught.what();
        error = EAGAIN;
    }
    watch_links(any_ended, run_link);
    // One link lost ends the session on all: else a frame could wait for one that is never read.
    context_.stop = true;
    wake();
    for (std::thread& thread : threads) {
        thread.join();
    }
    {
        const std::lock_guard lock(mutex_);
        context_.stop = context_.take_answers = ending_.load();
    }
    comparer_.reset();
    std::vector<std::unique_ptr<Link>> ended;
    {
        const std::lock_guard lock(mutex_);
        ended.swap(links_);
    }
    return why;
}

// Whatever ends it must not end the process, which serves the guest's disk.
void Sender::supervise() noexcept {
    try {
        keep_up();
    } catch (const std::exception& caught) {
        tracked_->release_throttle();
        set_phase(Phase::failed, caught.what());
    }
}

void Sender::keep_up() {
    for (;;) {
        int error = 0;
        std::string why = run_session(error);
        if (ending_) {
            return;
        }
        tracked_->release_throttle(); // nobody waits for a dead link
        if (error != ENOTCONN || options_.plain) {
            set_phase(Phase::failed, why);
            return;
        }
        set_phase(Phase::connecting, why);
        const uint64_t give_up_us =
            monotonic_us() + static_cast<uint64_t>(options_.reconnect.count()) * 1000;
        for (milliseconds pause = first_retry;; pause = std::min(2 * pause, last_retry)) {
            {
                std::unique_lock lock(mutex_);
                stopping_.wait_for(lock, pause, [this] { return ending_.load(); });
            }
            if (ending_) {
                return;
            }
            try {
                open_session();
                break;
            } catch (const Error& again) {
                if (ending_) {
                    return;
                }
                if (!may_come_back(again) || monotonic_us() > give_up_us) {
                    set_phase(Phase::failed, fmt::format("{}; then: {}", why, again.what()));
                    return;
                }
            }
        }
        set_phase(Phase::bulk);
    }
}

// --- measuring

// A link's thread. That nothing is left to do is not to wait for the next look at the rates.
void Sender::acknowledged(bool nothing_left) {
    wake();
    if (nothing_left && phase_ != Phase::in_sync) {
        const std::lock_guard lock(mutex_);
        came_in_sync_ = true;
        stopping_.notify_all();
    }
}

// Answers with how many connections are to be made.
unsigned Sender::measure(uint64_t now_us) {
    Source::Progress progress;
    {
        const std::lock_guard lock(tracked_->mutex);
        progress = tracked_->source.progress();
    }
    const DrainRate::Totals totals{.acknowledged = progress.acked_bytes,
                                   .made = progress.captured_bytes + progress.delta_bytes +
                                           progress.same_bytes + progress.dirty_bytes,
                                   .zeroes = progress.zero_bytes + progress.same_bytes,
                                   .left = progress.dirty_bytes + progress.lag_bytes};
    Throttle::Load load{.left = totals.left, .ready = phase_ != Phase::bulk};
    {
        const std::lock_guard lock(mutex_);
        round_trip_us_ = 0;
        for (const auto& link : links_) {
            round_trip_us_ = std::max(round_trip_us_, link->tcp().round_trip_us);
        }
        rate_.tick(totals, round_trip_us_, now_us);
        load.drain_rate = rate_.bytes_per_s();
        load.write_rate = rate_.write_bytes_per_s();
        load.stalled = rate_.stalled();
    }
    tracked_->tick_throttle(load, now_us);
    const bool full = context_.link_full.exchange(false),
               late = context_.coding_late.exchange(false);
    const uint64_t sent = context_.answered_bytes.exchange(0), since_us = measured_us_;
    measured_us_ = now_us;
    const uint64_t elapsed_us = now_us - since_us;
    if (context_.compressor) {
        using Bound = Compression::Bound;
        context_.compressor->tick(sent,
                                  elapsed_us,
                                  full   ? Bound::link
                                  : late ? Bound::coding
                                         : Bound::none);
    }
    const uint64_t limit = context_.pacer.rate();
    const bool at_limit = limit != 0 && sent * 10'000'000 >= limit * 9 * elapsed_us;
    const std::lock_guard lock(mutex_);
    ConnectionCount::Totals now{.answered_bytes = answered_ += sent};
    for (const auto& link : links_) {
        const Link::TcpFacts tcp = link->tcp();
        now.segments += tcp.sent;
        now.retransmitted += tcp.retransmitted;
    }
    return count_.more(now, full && !at_limit, connections_, now_us);
}

// What is left to do decides, and the rates as they were measured last.
Sender::Phase Sender::phase_of(const Source::Progress& progress) const {
    const Phase phase = phase_;
    if (phase == Phase::failed || phase == Phase::connecting) {
        return phase;
    }
    const uint64_t left = progress.dirty_bytes + progress.lag_bytes;
    // What is on its way takes no more of a pause than the answer to its last byte does.
    const uint64_t budget = rate_.bytes_per_s() / 1000 * (downtime_ms_ + round_trip_us_ / 1000);
    const bool was_ready = phase != Phase::bulk;
    // Ready stays ready up to twice the budget, or it would come and go with every burst.
    if (left > (was_ready ? 2 * budget : budget)) {
        return Phase::bulk;
    }
    return progress.in_sync ? Phase::in_sync : Phase::ready;
}

void Sender::judge() {
    Source::Progress progress;
    {
        const std::lock_guard lock(tracked_->mutex);
        progress = tracked_->source.progress();
    }
    Phase phase = Phase::connecting;
    {
        const std::lock_guard lock(mutex_);
        phase = phase_of(progress);
    }
    set_phase(phase);
}

Sender::Status Sender::status() const {
    Status status;
    {
        const std::lock_guard lock(tracked_->mutex);
        status.progress = tracked_->source.progress();
        if (tracked_->throttle.active()) {
            status.throttle_limit = tracked_->throttle.limit();
            status.throttle_delay_us = tracked_->throttle.longest_delay_us();
        }
        status.slowed = tracked_->throttle.clients();
    }
    const uint64_t now_us = monotonic_us();
    const std::lock_guard lock(mutex_);
    status.phase = phase_of(status.progress);
    status.error = error_;
    status.sent_bytes = context_.sent_bytes;
    if (context_.compressor) {
        status.compressed = context_.compressor->totals();
    }
    status.drain_rate = rate_.bytes_per_s();
    status.write_rate = rate_.write_bytes_per_s();
    status.elapsed_ms = (now_us - started_us_) / 1000;
    status.lag_ms = status.progress.oldest_us == 0 || status.progress.oldest_us > now_us
                        ? 0
                        : (now_us - status.progress.oldest_us) / 1000;
    const uint64_t left = status.progress.dirty_bytes + status.progress.lag_bytes;
    if (left == 0) {
        status.eta_ms = 0;
    } else if (status.drain_rate > status.write_rate) {
        status.eta_ms = left * 1000 / (status.drain_rate - status.write_rate);
    }
    status.connections = static_cast<unsigned>(links_.size());
    status.tls = tls_;
    return status;
}

} // namespace drover
