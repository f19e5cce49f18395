// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/disk.h"

#include "common/error.h"

#include <cstring>
#include <thread>

namespace drover {

Disk::Shard& Disk::shard() {
    static std::atomic<unsigned> threads{0};
    thread_local const unsigned index = threads++;
    return shards_[index % shards_.size()];
}

// A request on the direct path, if that is open: a count of its own, no lock.
// Whoever closes the path stores direct_ and then looks at the counts, this side counts and then
// looks at direct_; both sequentially consistent, so one of them sees the other.
class Disk::Direct {
public:
    explicit Direct(Disk& disk) : shard_(disk.shard()) {
        ++shard_.under_way;
        open_ = disk.direct_.load();
        if (!open_) {
            --shard_.under_way;
        }
    }
    ~Direct() {
        if (open_) {
            --shard_.under_way;
        }
    }
    Direct(const Direct&) = delete;
    Direct& operator=(const Direct&) = delete;
    explicit operator bool() const { return open_; }

private:
    Shard& shard_;
    bool open_;
};

void Disk::leave_direct() {
    direct_ = false;
    for (const Shard& each : shards_) {
        while (each.under_way != 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }
}

// Where a request that is not direct goes: to the owner elsewhere, or here and reported to tracked,
// if set.
struct Disk::Route {
    std::shared_ptr<Backend> owner;
    std::shared_ptr<Tracked> tracked;
    std::shared_ptr<HashSnapshot> snapshot;
};

// A change waits while changes are held, and counts as under way when it is let through here.
// waited: it has before.
Disk::Route Disk::route(bool change, bool waited) {
    std::unique_lock lock(mutex_);
    if (change) {
        waited |= held_;
        gate_.wait(lock, [&] { return !held_ || closed_; });
        if (closed_) {
            throw Error(ErrorKind::cancelled, "the disk is being shut down", ESHUTDOWN);
        }
        if (waited) {
            end_if_gone(client_gone_);
        }
        under_way_ += owner_ == nullptr ? 1 : 0;
    }
    return {owner_, tracked_, snapshot_};
}

void Disk::arrived() {
    const std::lock_guard lock(mutex_);
    if (--under_way_ == 0) {
        gate_.notify_all();
    }
}

bool Disk::taken_back(const Backend* owner) {
    const std::lock_guard lock(mutex_);
    return owner_.get() != owner;
}

Backend& Disk::place(const Route& way) {
    return way.owner ? *way.owner : backend_;
}

// Wherever it is to be done; what waited for the other owner when the disk was taken back, here.
template <typename Request>
auto Disk::routed(bool change, Request&& request) {
    for (bool waited = false;; waited = true) {
        const Route way = route(change, waited);
        try {
            return request(way);
        } catch (const Error& error) {
            if (!way.owner || error.kind() != ErrorKind::cancelled ||
                !taken_back(way.owner.get())) {
                throw;
            }
        }
    }
}

// paced: the client that may have to wait first. here: does it on the backend. there: on the
// owner's disk. report: tells the source that it was done.
template <typename Here, typename There, typename Report>
void Disk::change(Extent where,
                  std::optional<Throttle::ClientId> paced,
                  Here&& here,
                  There&& there,
                  Report&& report) {
    if (const Direct direct(*this); direct) {
        if (written_) {
            written_->mark(where);
        }
        here();
        return;
    }
    routed(true, [&](const Route& way) {
        if (way.owner) {
            there(*way.owner);
            return;
        }
        struct Arrival {
            Disk& disk;
            ~Arrival() { disk.arrived(); }
        } const arrival{*this};
        if (way.snapshot) {
            way.snapshot->preserve(where);
        }
        if (written_) {
            written_->mark(where);
        }
        if (!way.tracked || where.length == 0) {
            here();
            return;
        }
        Tracked& tracked = *way.tracked;
        if (paced && tracked.pace(*paced, where)) {
            end_if_gone(client_gone_);
        }
        const Tracked::Range range(tracked, where);
        try {
            here();
            report(tracked);
        } catch (...) {
            // Whatever is there now has to be read again; also after a fast zero that was refused:
            // part of it may have been done; and where there was no memory to report it.
            const std::lock_guard lock(tracked.mutex);
            tracked.source.spoiled(where);
            tracked.changed.notify_all();
            throw;
        }
    });
}

// Null if there is no memory for it: the write is done, it is not to fail for that.
static Bytes copy_of(const void* data, uint64_t length) noexcept {
    try {
        const auto bytes = std::make_shared_for_overwrite<std::byte[]>(length);
        std::memcpy(bytes.get(), data, length);
        return {bytes, bytes.get()};
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

// Nothing has to know of a read here, or wait for it: one that is under way when the owner becomes
// another is older than each write there.
void Disk::read(void* data, Extent where) {
    shard().requests.fetch_add(1, std::memory_order_relaxed);
    if (!forwarding_) {
        backend_.read(data, where);
        return;
    }
    routed(false, [&](const Route& way) { place(way).read(data, where); });
}

void Disk::write(const void* data, Extent where, bool fua, Throttle::ClientId client) {
    shard().requests.fetch_add(1, std::memory_order_relaxed);
    change(
        where,
        client,
        [&] { backend_.write(data, where, fua); },
        [&](Backend& owner) { owner.write(data, where, fua); },
        [&](Tracked& tracked) {
            Tracked::Lock lock(tracked.mutex);
            Bytes copy;
            if (tracked.source.wants_data(where)) {
                lock.unlock();
                copy = copy_of(data, where.length);
                lock.lock();
            }
            tracked.throttle.wrote(client, where.offset, tracked.source.new_work(where));
            tracked.source.write_done(where, copy, monotonic_us());
            tracked.changed.notify_all();
        });
}

void Disk::flush() {
    if (const Direct direct(*this); direct) {
        backend_.flush();
        return;
    }
    routed(false, [&](const Route& way) {
        place(way).flush();
        if (!way.owner && way.tracked) {
            {
                const std::lock_guard lock(way.tracked->mutex);
                way.tracked->source.flush_done(monotonic_us());
            }
            way.tracked->wake();
        }
    });
}

void Disk::trim(Extent where, bool fua) {
    bool done = false;
    change(
        where,
        std::nullopt,
        [&] { done = backend_.trim(where, fua); },
        [&](Backend& owner) { owner.trim(where, fua); },
        [&](Tracked& tracked) {
            if (!done) {
                return; // it reads as before, here and at the destination
            }
            const std::lock_guard lock(tracked.mutex);
            // What was trimmed may read as anything: then the blocks are read again.
            if (backend_.features().trim_reads_zero) {
                tracked.source.zero_done(where, OpType::trim, monotonic_us());
            } else {
                tracked.source.spoiled(where);
            }
            tracked.changed.notify_all();
        });
}

void Disk::zero(Extent where, bool may_punch, bool fast, bool fua) {
    change(
        where,
        std::nullopt,
        [&] { backend_.zero(where, may_punch, fast, fua); },
        [&](Backend& owner) { owner.zero(where, may_punch, fast, fua); },
        [&](Tracked& tracked) {
            const std::lock_guard lock(tracked.mutex);
            tracked.source.zero_done(
                where, may_punch ? OpType::trim : OpType::zero, monotonic_us());
            tracked.changed.notify_all();
        });
}

void Disk::cache(Extent where) {
    routed(false, [&](const Route& way) { place(way).cache(where); });
}

std::vector<BackendExtent> Disk::extents(Extent where, bool one) {
    return routed(false, [&](const Route& way) { return place(way).extents(where, one); });
}

// --- control

void Disk::start_tracking(std::shared_ptr<Tracked> tracked) {
    tracked->guest_requests = [this] {
        uint64_t sum = 0;
        for (const Shard& each : shards_) {
            sum += each.requests.load(std::memory_order_relaxed);
        }
        return sum;
    };
    leave_direct();
    // Those that came by route() and found no tracking have to end as well.
    std::unique_lock lock(mutex_);
    const bool was_held = std::exchange(held_, true);
    gate_.wait(lock, [&] { return under_way_ == 0; });
    tracked_ = std::move(tracked);
    held_ = was_held;
    gate_.notify_all();
}

void Disk::stop_tracking() {
    const std::lock_guard lock(mutex_);
    if (tracked_) {
        tracked_->release_throttle();
    }
    tracked_.reset();
    settle_direct();
}

// The direct path is open where nothing has to know of a request. With mutex_.
void Disk::settle_direct() {
    direct_ = !held_ && !tracked_ && !snapshot_ && !owner_ && !closed_;
}

void Disk::set_snapshot(std::shared_ptr<HashSnapshot> snapshot) {
    const std::lock_guard lock(mutex_);
    snapshot_ = std::move(snapshot);
    settle_direct();
}

void Disk::set_written(std::shared_ptr<WrittenBlocks> written) {
    const std::lock_guard lock(mutex_);
    written_ = std::move(written);
}

std::shared_ptr<WrittenBlocks> Disk::written() const {
    const std::lock_guard lock(mutex_);
    return written_;
}

void Disk::hold() {
    leave_direct();
    std::unique_lock lock(mutex_);
    held_ = true;
    if (tracked_) {
        tracked_->release_throttle(); // who waits there is under way
    }
    gate_.wait(lock, [&] { return under_way_ == 0; });
}

void Disk::release() {
    const std::lock_guard lock(mutex_);
    held_ = false;
    settle_direct();
    gate_.notify_all();
}

void Disk::forward_to(std::shared_ptr<Backend> owner) {
    hold();
    const std::lock_guard lock(mutex_);
    tracked_.reset();
    owner_ = std::move(owner);
    forwarding_ = true;
    held_ = false;
    gate_.notify_all();
}

void Disk::take_back() {
    const std::lock_guard lock(mutex_);
    owner_.reset();
    forwarding_ = false;
    held_ = false;
    settle_direct();
    gate_.notify_all();
}

void Disk::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    direct_ = false;
    gate_.notify_all();
}

} // namespace drover
