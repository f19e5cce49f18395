// SPDX-License-Identifier: GPL-2.0-or-later
// A connection that is lost is left alone by all who used it before another is made, so nothing is
// answered, kept or forgotten while the kept changes are done again.
#include "nbd-proxy/reconnecting_client.h"

#include "common/error.h"

#include <algorithm>

namespace drover {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds first_retry{50}, last_retry{2000};
constexpr uint64_t least_cost = 128; // of a kept change, beside its data

// The server's, to this request. What it says while it ends is not: another will answer.
bool is_answer(const NbdClient& client, const Error& error) {
    return client.alive() && error.sys_errno() != ESHUTDOWN;
}

} // namespace

// A request's hold on the connection. While there is one no other connection is made.
class ReconnectingClient::Use {
public:
    // Waits for a connection, or makes one. Throws Error.
    explicit Use(ReconnectingClient& of) : of_(of) {
        Lock lock(of_.mutex_);
        if (of_.await_server(lock)) {
            end_if_gone(of_.client_gone_);
        }
        ++of_.users_;
    }
    ~Use() {
        const std::lock_guard lock(of_.mutex_);
        if (--of_.users_ == 0) {
            of_.changed_.notify_all();
        }
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    NbdClient& client() const { return *of_.client_; }

private:
    ReconnectingClient& of_;
};

ReconnectingClient::ReconnectingClient(Connect connect, Patience patience, ClientGone gone)
    : connect_(std::move(connect)), patience_(patience), client_gone_(std::move(gone)),
      client_(connect_(stopped_)) {
    size_ = client_->size();
    features_ = client_->features();
    read_only_ = client_->read_only();
    name_ = client_->name();
}

ReconnectingClient::~ReconnectingClient() = default;

void ReconnectingClient::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

// Until client_ can be used. One of those who wait connects. Whether it waited.
bool ReconnectingClient::await_server(Lock& lock) {
    for (bool waited = false;; waited = true) {
        if (stopped_) {
            throw Error(ErrorKind::cancelled, "the disk is being shut down", ESHUTDOWN);
        }
        if (usable_) {
            return waited;
        }
        if (connecting_ || users_ > 0) {
            changed_.wait(lock);
            continue;
        }
        const bool late = patience_ && Clock::now() >= lost_at_ + *patience_;
        if (Clock::now() < next_try_) {
            if (late) {
                unreachable();
            }
            changed_.wait_until(lock,
                                patience_ ? std::min(next_try_, lost_at_ + *patience_) : next_try_);
            continue;
        }
        connecting_ = true;
        std::unique_ptr<NbdClient> old = std::move(client_); // nobody uses it
        lock.unlock();
        old.reset();
        std::unique_ptr<NbdClient> next;
        std::string why;
        try {
            next = try_to_connect();
        } catch (const std::exception& error) {
            why = error.what();
        }
        lock.lock();
        connecting_ = false;
        client_ = std::move(next);
        usable_ = client_ != nullptr;
        why_ = why;
        next_try_ = Clock::now() + pause_;
        pause_ = std::min(2 * pause_, last_retry);
        changed_.notify_all();
    }
}

// With kept_ to itself.
std::unique_ptr<NbdClient> ReconnectingClient::try_to_connect() {
    std::unique_ptr<NbdClient> next = connect_(stopped_);
    if (next->size() != size_ || next->read_only() != read_only_) {
        throw Error(ErrorKind::peer,
                    fmt::format("what is served there now is another disk, or served otherwise: {} "
                                "bytes, read-only: {}",
                                next->size(),
                                next->read_only()));
    }
    try {
        for (const Change& change : kept_) {
            change.repeat(*next);
        }
    } catch (const Error& error) {
        if (!is_answer(*next, error)) {
            throw;
        }
        // It is there, and does not take what its predecessor had taken.
        const std::lock_guard lock(mutex_);
        give_up_flushing();
    }
    return next;
}

void ReconnectingClient::unreachable() const {
    throw Error(
        ErrorKind::peer,
        fmt::format("{} has not been reachable for {} s{}{}",
                    name_,
                    std::chrono::ceil<std::chrono::seconds>(Clock::now() - lost_at_).count(),
                    why_.empty() ? "" : ": ",
                    why_),
        EIO);
}

// By a user of client_.
void ReconnectingClient::lost() {
    const std::lock_guard lock(mutex_);
    if (usable_) {
        usable_ = false;
        why_.clear();
        lost_at_ = Clock::now();
        pause_ = first_retry;
        next_try_ = lost_at_ + pause_;
    }
}

// With mutex_. What is kept serves no purpose when no flush will ever tell that it is safe.
void ReconnectingClient::give_up_flushing() {
    flush_failed_ = true;
    kept_.clear();
    kept_bytes_ = 0;
}

// Until a server has answered.
template <typename Request>
auto ReconnectingClient::persist(Request&& request) {
    for (;;) {
        const Use use(*this);
        try {
            return request(use.client());
        } catch (const Error& error) {
            if (is_answer(use.client(), error)) {
                throw;
            }
            lost();
        }
    }
}

// False if too much is kept now.
bool ReconnectingClient::keep(uint64_t bytes, std::function<void(NbdClient&)> repeat) {
    const std::lock_guard lock(mutex_);
    if (flush_failed_) {
        return true;
    }
    const uint64_t cost = bytes + least_cost;
    kept_.push_back({++last_number_, cost, std::move(repeat)});
    kept_bytes_ += cost;
    return kept_bytes_ <= most_kept;
}

// doing(client, fua): does it, answers whether there is anything to keep. repeat(): what does it
// again.
template <typename Do, typename Repeat>
void ReconnectingClient::change(bool fua, uint64_t bytes, Do&& doing, Repeat&& repeat) {
    bool flush_now = false;
    persist([&](NbdClient& to) {
        bool alone = false;
        {
            const std::lock_guard lock(mutex_);
            alone = kept_.empty();
        }
        // Durable by itself it would not be kept, and the older ones that are would be done again
        // over it.
        const bool by_itself = fua && alone;
        const bool done = doing(to, by_itself);
        flush_now = fua && !by_itself;
        if (done && !by_itself) {
            flush_now |= !keep(bytes, repeat());
        }
    });
    if (flush_now) {
        flush();
    }
}

void ReconnectingClient::read(void* data, Extent where) {
    persist([&](NbdClient& from) { from.read(data, where); });
}

void ReconnectingClient::write(const void* data, Extent where, bool fua) {
    change(
        fua,
        where.length,
        [&](NbdClient& to, bool durable) {
            to.write(data, where, durable);
            return true;
        },
        [&] {
            const auto* const bytes = static_cast<const std::byte*>(data);
            return [where, copy = std::vector<std::byte>(bytes, bytes + where.length)](
                       NbdClient& to) { to.write(copy.data(), where, false); };
        });
}

void ReconnectingClient::flush() {
    uint64_t covered = 0;
    {
        const std::lock_guard lock(mutex_);
        covered = last_number_;
    }
    persist([&](NbdClient& to) {
        try {
            to.flush();
        } catch (const Error& error) {
            if (is_answer(to, error)) {
                const std::lock_guard lock(mutex_);
                give_up_flushing();
            }
            throw;
        }
        const std::lock_guard lock(mutex_);
        if (flush_failed_) {
            throw Error(ErrorKind::io,
                        fmt::format("{}: an earlier flush failed, or what was written before the "
                                    "server went could not be written again",
                                    name_),
                        EIO);
        }
        while (!kept_.empty() && kept_.front().number <= covered) {
            kept_bytes_ -= kept_.front().cost;
            kept_.pop_front();
        }
    });
}

bool ReconnectingClient::trim(Extent where, bool fua) {
    bool done = false;
    change(
        fua,
        0,
        [&](NbdClient& to, bool durable) { return done = to.trim(where, durable); },
        [&] { return [where](NbdClient& to) { to.trim(where, false); }; });
    return done;
}

void ReconnectingClient::zero(Extent where, bool may_punch, bool fast, bool fua) {
    change(
        fua,
        0,
        [&](NbdClient& to, bool durable) {
            to.zero(where, may_punch, fast, durable);
            return true;
        },
        [&] {
            return [where, may_punch](NbdClient& to) { to.zero(where, may_punch, false, false); };
        });
}

void ReconnectingClient::cache(Extent where) {
    persist([&](NbdClient& to) { to.cache(where); });
}

std::vector<BackendExtent> ReconnectingClient::extents(Extent where, bool one) {
    return persist([&](NbdClient& from) { return from.extents(where, one); });
}

} // namespace drover
