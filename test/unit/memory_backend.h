// SPDX-License-Identifier: GPL-2.0-or-later
// A disk in memory for unit tests: counts what is done to it, fails or stops when told to.
#pragma once

#include "common/error.h"
#include "nbd-proxy/backend.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>

namespace drover {

// Thread-safe, as every backend is.
class MemoryBackend : public Backend {
public:
    explicit MemoryBackend(uint64_t size) : bytes_(size) {
        features_.can_trim = features_.can_zero = features_.can_fast_zero = true;
        features_.trim_reads_zero = true;
    }

    uint64_t size() const override { return bytes_.size(); }
    const Features& features() const override { return features_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return name_; }

    void read(void* data, Extent where) override {
        const std::lock_guard lock(mutex_);
        fail_if(fail_reads);
        ++reads;
        std::memcpy(data, &bytes_[where.offset], where.length);
    }
    void write(const void* data, Extent where, bool) override {
        change([&] { std::memcpy(&bytes_[where.offset], data, where.length); });
    }
    void flush() override {
        std::unique_lock lock(mutex_);
        wait_while_blocked(lock);
        if (fail_flushes != 0) {
            flush_failed_ = fail_flushes.load();
        }
        fail_if(flush_failed_);
        ++flushes;
    }
    bool trim(Extent where, bool) override {
        if (keeps_space) {
            return false;
        }
        clear(where);
        return true;
    }
    void zero(Extent where, bool, bool, bool) override { clear(where); }
    void cache(Extent) override {}
    std::vector<BackendExtent> extents(Extent where, bool) override {
        return {{.length = where.length}};
    }

    std::vector<std::byte> bytes() const {
        const std::lock_guard lock(mutex_);
        return bytes_;
    }
    // Changes and flushes wait before they are done, until released; how many are waiting.
    void block() { blocked_ = true; }
    void unblock() {
        const std::lock_guard lock(mutex_);
        blocked_ = false;
        changed_.notify_all();
    }
    void wait_for_blocked(unsigned count) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return waiting_ >= count; });
    }
    Features& set_features() { return features_; }

    std::atomic<bool> keeps_space{false};                             // cannot trim
    std::atomic<int> fail_changes{0}, fail_reads{0}, fail_flushes{0}; // an errno
    std::atomic<unsigned> reads{0}, changes{0}, flushes{0};

private:
    template <typename Body>
    void change(Body&& body) {
        std::unique_lock lock(mutex_);
        wait_while_blocked(lock);
        ++changes;
        fail_if(fail_changes);
        body();
    }
    void wait_while_blocked(std::unique_lock<std::mutex>& lock) {
        ++waiting_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return !blocked_; });
        --waiting_;
    }
    void clear(Extent where) {
        change([&] { std::memset(&bytes_[where.offset], 0, where.length); });
    }
    static void fail_if(int error) {
        if (error != 0) {
            throw Error(ErrorKind::io, "told to fail", error);
        }
    }

    int flush_failed_ = 0; // for good, as storage does it
    std::string name_ = "memory";
    Features features_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::byte> bytes_;
    std::atomic<bool> blocked_{false};
    unsigned waiting_ = 0;
};

} // namespace drover
