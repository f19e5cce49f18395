// SPDX-License-Identifier: GPL-2.0-or-later
// A disk's ownership record as threads share it: the control methods, a replica's events and
// whoever dials a new owner.
#pragma once

#include "nbd-proxy/record_store.h"

#include <functional>
#include <mutex>

namespace drover {

// Thread-safe. A change waits for the disk, and other changes for it; get() for nothing.
class DiskRecord {
public:
    using Change = std::function<Record(const Record&)>;

    // Throws as RecordStore::open does.
    explicit DiskRecord(const RecordStoreOptions& options);

    // Called after each change of what get() answers, with no lock held; set before other threads
    // come.
    void on_change(std::function<void()> changed) { changed_ = std::move(changed); }

    Record get() const;
    // Looks at the record and changes it in one step, so that no change of another thread is lost.
    // Durable when it returns, with the record as it is then. Throws what `change` and
    // RecordStore::save do.
    Record update(const Change& change);
    // The same, saved also where nothing changes: its version then is a number that was never used
    // before.
    Record renew(const Change& change);

    // As RecordStore's.
    std::string image_path() const;
    void mark_clean();
    void set_aside();
    void fence_image();
    void unfence_image();

private:
    Record save(const Change& change, bool always);
    template <typename Work>
    void with_store(Work&& work);

    std::function<void()> changed_ = [] {};
    mutable std::mutex saving_; // store_; before mutex_
    RecordStore store_;
    mutable std::mutex mutex_; // now_; held for moments
    Record now_;               // store_'s
};

} // namespace drover
