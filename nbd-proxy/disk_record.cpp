// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/disk_record.h"

namespace drover {

DiskRecord::DiskRecord(const RecordStoreOptions& options)
    : store_(RecordStore::open(options)), now_(store_.record()) {}

Record DiskRecord::get() const {
    const std::lock_guard lock(mutex_);
    return now_;
}

// What get() answers follows the store, also when the work throws half way.
template <typename Work>
void DiskRecord::with_store(Work&& work) {
    struct Follow {
        DiskRecord& record;
        ~Follow() {
            const std::lock_guard lock(record.mutex_);
            record.now_ = record.store_.record();
        }
    };
    {
        const std::lock_guard lock(saving_);
        const Follow follow{*this};
        work();
    }
    changed_();
}

Record DiskRecord::save(const Change& change, bool always) {
    Record saved;
    with_store([&] {
        const Record next = change(store_.record());
        if (always || next != store_.record()) {
            store_.save(next);
        }
        saved = store_.record();
    });
    return saved;
}

Record DiskRecord::update(const Change& change) {
    return save(change, false);
}

Record DiskRecord::renew(const Change& change) {
    return save(change, true);
}

std::string DiskRecord::image_path() const {
    const std::lock_guard lock(saving_);
    return store_.image_path();
}

void DiskRecord::mark_clean() {
    with_store([this] { store_.mark_clean(); });
}

void DiskRecord::set_aside() {
    with_store([this] { store_.set_aside(); });
}

void DiskRecord::fence_image() {
    with_store([this] { store_.fence_image(); });
}

void DiskRecord::unfence_image() {
    with_store([this] { store_.unfence_image(); });
}

} // namespace drover
