// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/exports.h"

#include "common/error.h"
#include "nbd-proxy/stream_priority.h"

#include <atomic>
#include <cstring>
#include <limits>

namespace drover {
namespace {

[[noreturn]] void not_offered() {
    throw Error(ErrorKind::refused, "this export does not offer that", EINVAL);
}

// An export that offers nothing yet.
class NoExport : public Export {
public:
    Backend::Features features() const override { return {}; }
    bool can_write() const override { return false; }
    void read(void*, Extent) override { not_offered(); }
    void write(const void*, Extent, bool) override { not_offered(); }
    void flush() override { not_offered(); }
    void trim(Extent, bool) override { not_offered(); }
    void zero(Extent, bool, bool, bool) override { not_offered(); }
    void cache(Extent) override { not_offered(); }
    std::vector<BackendExtent> extents(Extent, bool) override { not_offered(); }
};

class DiskExport : public Export {
public:
    DiskExport(Disk& disk, const Backend& backend, bool read_only)
        : disk_(disk), backend_(backend), read_only_(read_only), client_(next_client()) {}

    uint64_t size() const override { return backend_.size(); }
    Backend::Features features() const override { return backend_.features(); }
    bool can_write() const override { return !read_only_; }
    void read(void* data, Extent where) override { disk_.read(data, where); }
    void write(const void* data, Extent where, bool fua) override {
        disk_.write(data, where, fua, client_);
    }
    void flush() override { disk_.flush(); }
    void trim(Extent where, bool fua) override { disk_.trim(where, fua); }
    void zero(Extent where, bool may_punch, bool fast, bool fua) override {
        disk_.zero(where, may_punch, fast, fua);
    }
    void cache(Extent where) override { disk_.cache(where); }
    std::vector<BackendExtent> extents(Extent where, bool one) override {
        return disk_.extents(where, one);
    }

private:
    static Throttle::ClientId next_client() {
        static std::atomic<Throttle::ClientId> last{0};
        return ++last;
    }

    Disk& disk_;
    const Backend& backend_;
    const bool read_only_;
    const Throttle::ClientId client_;
};

class ForwardExport : public Export {
public:
    ForwardExport(std::unique_ptr<Export> disk,
                  std::shared_ptr<ForwardGate> gate,
                  uint64_t number,
                  std::function<bool()> is_owner)
        : disk_(std::move(disk)), gate_(std::move(gate)), number_(number),
          is_owner_(std::move(is_owner)) {
        gate_->open(number_);
    }

    uint64_t size() const override { return disk_->size(); }
    Backend::Features features() const override { return disk_->features(); }
    bool can_write() const override { return disk_->can_write(); }
    void read(void* data, Extent where) override {
        const Pass pass(*this);
        disk_->read(data, where);
    }
    void write(const void* data, Extent where, bool fua) override {
        const Pass pass(*this);
        disk_->write(data, where, fua);
    }
    void flush() override {
        const Pass pass(*this);
        disk_->flush();
    }
    void trim(Extent where, bool fua) override {
        const Pass pass(*this);
        disk_->trim(where, fua);
    }
    void zero(Extent where, bool may_punch, bool fast, bool fua) override {
        const Pass pass(*this);
        disk_->zero(where, may_punch, fast, fua);
    }
    void cache(Extent where) override {
        const Pass pass(*this);
        disk_->cache(where);
    }
    std::vector<BackendExtent> extents(Extent where, bool one) override {
        const Pass pass(*this);
        return disk_->extents(where, one);
    }

private:
    struct Pass {
        explicit Pass(ForwardExport& forward) : gate(*forward.gate_) {
            forward.must_be_owner();
            gate.enter(forward.number_);
        }
        ~Pass() { gate.leave(); }
        Pass(const Pass&) = delete;
        Pass& operator=(const Pass&) = delete;
        ForwardGate& gate;
    };

    void must_be_owner() {
        if (!owner_) {
            if (!is_owner_()) {
                throw Error(ErrorKind::state, "the disk has not come here yet", ESHUTDOWN);
            }
            owner_ = true;
        }
    }

    std::unique_ptr<Export> disk_;
    std::shared_ptr<ForwardGate> gate_;
    const uint64_t number_;
    const std::function<bool()> is_owner_;
    std::atomic<bool> owner_{false};
};

class ReplicaExport : public NoExport {
public:
    explicit ReplicaExport(std::shared_ptr<Replica> replica) : replica_(std::move(replica)) {}

    // The offset of a write is its first LSN: any number.
    uint64_t size() const override { return std::numeric_limits<int64_t>::max(); }
    bool can_write() const override { return true; }
    void write(const void* data, Extent where, bool fua) override {
        // nbdkit's threads serve one connection.
        thread_local const bool lowered = (lower_stream_priority(), true);
        static_cast<void>(lowered);
        replica_->apply({static_cast<const std::byte*>(data), where.length}, fua);
    }
    void flush() override { replica_->flush(); }

private:
    std::shared_ptr<Replica> replica_;
};

class StateExport : public NoExport {
public:
    explicit StateExport(std::shared_ptr<Replica> replica) : replica_(std::move(replica)) {}

    uint64_t size() const override { return state_size; }
    void read(void* data, Extent where) override {
        const auto state = replica_->state();
        std::memcpy(data, state.data() + where.offset, where.length);
    }

private:
    std::shared_ptr<Replica> replica_;
};

class HashesExport : public NoExport {
public:
    HashesExport(Backend& backend,
                 BlockGeometry geometry,
                 uint64_t seed,
                 std::shared_ptr<HashSnapshot> snapshot,
                 std::shared_ptr<WrittenBlocks> written)
        : backend_(backend), geometry_(geometry), seed_(seed), snapshot_(std::move(snapshot)),
          written_(std::move(written)) {}

    uint64_t size() const override { return geometry_.blocks() * sizeof(Hash128); }
    void read(void* data, Extent where) override {
        // Each hash costs a block's read: a bounded number for one request.
        constexpr uint64_t most = 256 * sizeof(Hash128);
        if (where.offset % sizeof(Hash128) != 0 || where.length % sizeof(Hash128) != 0 ||
            where.length > most) {
            throw Error(ErrorKind::usage,
                        "hashes are read in units of 16 bytes, at most 256 of them at once",
                        EINVAL);
        }
        auto* to = static_cast<std::byte*>(data);
        for (uint64_t at = where.offset; at < where.end(); at += sizeof(Hash128)) {
            const uint64_t block = at / sizeof(Hash128);
            Hash128 hash =
                snapshot_ ? snapshot_->hash(block) : hash_block(backend_, geometry_, block, seed_);
            if (!snapshot_ && written_ && written_->has(block)) { // after it was read
                hash = Hash128{};
            }
            std::memcpy(to, &hash, sizeof hash);
            to += sizeof hash;
        }
    }

private:
    Backend& backend_;
    const BlockGeometry geometry_;
    const uint64_t seed_;
    std::shared_ptr<HashSnapshot> snapshot_;
    std::shared_ptr<WrittenBlocks> written_;
};

} // namespace

void ForwardGate::open(uint64_t number) {
    std::unique_lock lock(mutex_);
    if (number < number_) {
        throw Error(
            ErrorKind::refused, "a later connection of the forwarding source has been here", EPERM);
    }
    if (number > number_) {
        number_ = number;
        idle_.wait(lock, [this] { return under_way_ == 0; });
    }
}

void ForwardGate::enter(uint64_t number) {
    const std::lock_guard lock(mutex_);
    if (number != number_) {
        throw Error(
            ErrorKind::cancelled, "a later connection of the forwarding source is here", ESHUTDOWN);
    }
    ++under_way_;
}

void ForwardGate::leave() {
    const std::lock_guard lock(mutex_);
    if (--under_way_ == 0) {
        idle_.notify_all();
    }
}

std::unique_ptr<Export> make_forward_export(std::unique_ptr<Export> disk,
                                            std::shared_ptr<ForwardGate> gate,
                                            uint64_t number,
                                            std::function<bool()> is_owner) {
    return std::make_unique<ForwardExport>(
        std::move(disk), std::move(gate), number, std::move(is_owner));
}

std::unique_ptr<Export> make_disk_export(Disk& disk, const Backend& backend, bool read_only) {
    return std::make_unique<DiskExport>(disk, backend, read_only);
}

std::unique_ptr<Export> make_replica_export(std::shared_ptr<Replica> replica) {
    return std::make_unique<ReplicaExport>(std::move(replica));
}

std::unique_ptr<Export> make_state_export(std::shared_ptr<Replica> replica) {
    return std::make_unique<StateExport>(std::move(replica));
}

std::unique_ptr<Export> make_hashes_export(Backend& backend,
                                           BlockGeometry geometry,
                                           uint64_t seed,
                                           std::shared_ptr<HashSnapshot> snapshot,
                                           std::shared_ptr<WrittenBlocks> written) {
    return std::make_unique<HashesExport>(
        backend, geometry, seed, std::move(snapshot), std::move(written));
}

} // namespace drover
