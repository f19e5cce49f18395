// SPDX-License-Identifier: GPL-2.0-or-later
// The sending end of a stream: opens sessions to the destination, one after
// the other while that helps, runs the links, and measures how it goes.
#pragma once

#include "nbd-proxy/comparer.h"
#include "nbd-proxy/core/connection_count.h"
#include "nbd-proxy/core/drain_rate.h"
#include "nbd-proxy/link.h"

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>

namespace drover {

struct SenderOptions {
    NbdClientOptions to; // without an export name, for a drover
    bool plain = false;  // `to` is any NBD server
    MigrationId migration{};
    StreamId stream; // session 0
    std::array<std::byte, 16>
        uuid{}; // of the disk; the destination's replica has to be of the same
    unsigned connections = 2;
    unsigned most_connections = 2; // of a drover; more than `connections` where that is faster
    uint64_t downtime_ms = 300;
    uint64_t max_bandwidth = 0;                  // bytes/s, 0: none
    Compress compress = Compress::automatic;     // never for a plain server
    uint64_t window_bytes = 64 * MiB;            // in flight, at most, over all links
    std::chrono::milliseconds reconnect{30'000}; // how long a lost link may stay lost
    std::chrono::milliseconds tick{100};         // between two looks at the rates
};

class Sender {
public:
    enum class Phase { connecting, bulk, ready, in_sync, failed };

    struct Status {
        Phase phase = Phase::connecting;
        std::string error; // of the last lost session, or why it failed
        Source::Progress progress;
        uint64_t sent_bytes = 0;
        Compressor::Totals compressed;
        uint64_t drain_rate = 0, write_rate = 0; // bytes/s
        uint64_t elapsed_ms = 0, lag_ms = 0;
        std::optional<uint64_t>
            eta_ms; // until in sync, if it goes on so; none: it does not converge
        unsigned connections = 0;
        bool tls = false;
        // Writers are slowed down to so much new work a second, each write by so much at most.
        std::optional<uint64_t> throttle_limit;
        uint64_t throttle_delay_us = 0;
        std::vector<Throttle::ClientStatus> slowed; // who was, in this stream
    };

    // changed: called from threads of the sender when the phase changes.
    Sender(std::shared_ptr<Tracked> tracked,
           Backend& disk,
           SenderOptions options,
           std::function<void()> changed);
    ~Sender() { end(); }
    Sender(const Sender&) = delete;
    Sender& operator=(const Sender&) = delete;

    // The first session, then goes on by itself. Throws Error if that session can't be had.
    void start();
    // From another thread: makes a start() that is under way fail; otherwise does nothing.
    void give_up_start();
    // Ends the links. What is on its way is given up, but its answers are waited for, for two
    // seconds at most.
    void end();
    void wake();
    // Makes who waits for the handover look again.
    void notify();
    void set_downtime(uint64_t downtime_ms) { downtime_ms_ = downtime_ms; }
    void set_max_bandwidth(uint64_t bytes_per_s) { context_.pacer.set_rate(bytes_per_s); }
    bool failed() const { return phase_ == Phase::failed; }
    Status status() const;

private:
    void interrupt();
    void open_session();
    NbdHandle join() const;
    Link* add_link(NbdHandle handle);
    std::unique_ptr<Comparer> open_comparer(bool first_session);
    void give_up_comparing();
    void compare(Comparer& comparer);
    NbdHandle connect(const char* export_name) const;
    std::vector<NbdHandle> connect_all(const std::vector<const char*>& export_names);
    void await(nbd_handle* handle, int64_t command, const char* what) const;
    ReplicaState read_state(nbd_handle* handle) const;
    void greet(nbd_handle* handle, std::optional<Lsn> base) const;
    std::string run_session(int& error);
    void supervise() noexcept;
    void keep_up();
    void watch_links(const std::atomic<bool>& any_ended,
                     const std::function<void(Link*)>& run_link);
    void acknowledged(bool nothing_left);
    unsigned measure(uint64_t now_us);
    Phase phase_of(const Source::Progress& progress) const;
    void judge();
    void set_phase(Phase phase, const std::string& error = "");

    std::shared_ptr<Tracked> tracked_;
    SenderOptions options_;
    std::function<void()> changed_;
    StreamContext context_;
    std::atomic<Phase> phase_{Phase::connecting};
    std::atomic<uint64_t> downtime_ms_;
    const uint64_t started_us_ = monotonic_us();
    uint64_t measured_us_ = started_us_; // the supervisor's

    std::array<std::byte, 16> instance_{}; // the destination's process in the last session
    bool had_session_ = false;
    std::unique_ptr<Comparer>
        comparer_;           // of the present session, where there is something to compare
    bool comparing_ = false; // not done yet
    unsigned fruitless_ = 0; // sessions that brought it no answer, in a row

    mutable std::mutex mutex_; // links_, error_, tls_, rate_. Before tracked_->mutex
    std::vector<std::unique_ptr<Link>> links_;
    std::string error_;
    bool tls_ = false;
    DrainRate rate_;
    uint64_t round_trip_us_ = 0; // of the links, at the last look
    bool came_in_sync_ = false;  // and the phase does not say so yet

    ConnectionCount count_;
    uint64_t answered_ = 0;                       // bytes, for it
    unsigned connections_ = options_.connections; // of the present session, or the next

    std::atomic<bool> started_{false}, ending_{false};
    std::atomic<bool> give_up_{false}; // what opens connections: ending_, or the session is over
    std::condition_variable stopping_;
    std::thread supervisor_;
};

} // namespace drover
