// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/disk_record.h"

#include "test/unit/folder.h"

#include <future>
#include <thread>

#include <doctest/doctest.h>

using namespace drover;
using namespace std::chrono_literals;

TEST_CASE("disk record: no change of one thread is lost by another's") {
    const Folder folder;
    DiskRecord record({.image = folder.file("vm.img"), .state_dir = folder.file("state")});
    constexpr unsigned rounds = 200;
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&record] {
            for (unsigned round = 0; round < rounds; ++round) {
                record.update([](Record next) {
                    ++next.stream_counter;
                    return next;
                });
            }
        });
    }
    uint64_t last = 0;
    bool ascending = true;
    for (unsigned round = 0; round < rounds; ++round) {
        const Record saved = record.renew([](const Record& now) { return now; });
        ascending = ascending && saved.version > last;
        last = saved.version;
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    CHECK(ascending);
    CHECK(record.get().stream_counter == 2 * rounds);
    CHECK(record.get().version == 1 + 3 * rounds);
    CHECK((peek_record(folder.file("state")) == record.get()));
}

TEST_CASE("disk record: looking at it does not wait for the disk") {
    const Folder folder;
    std::promise<void> saving, go_on;
    std::atomic<bool> slow{false};
    DiskRecord record({.image = folder.file("vm.img"),
                       .state_dir = folder.file("state"),
                       .step = [&](std::string_view what) {
                           if (slow && what == "record saved") {
                               saving.set_value();
                               go_on.get_future().wait();
                           }
                       }});
    slow = true;
    auto saved = std::async(std::launch::async, [&record] {
        return record.update([](Record next) {
            next.stream_counter = 7;
            return next;
        });
    });
    saving.get_future().wait();
    CHECK(record.get().stream_counter == 0);
    slow = false;
    go_on.set_value();
    CHECK(saved.get().stream_counter == 7);
    CHECK(record.get().stream_counter == 7);
}
