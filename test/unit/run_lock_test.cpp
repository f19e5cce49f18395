// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/run_lock.h"
#include "test/unit/folder.h"

#include <doctest/doctest.h>

#include <sys/stat.h>

using namespace drover;

TEST_CASE("run lock: others see when its holder last had something to live for") {
    const Folder folder;
    const std::string path = folder.file("agent.lock");
    RunLock mine(path);
    REQUIRE(mine.try_lock("agent"));
    RunLock theirs(path);
    CHECK_FALSE(theirs.try_lock("agent"));
    CHECK(theirs.untouched_for() < std::chrono::seconds(60));

    const timespec long_ago[2]{{1000, 0}, {1000, 0}};
    REQUIRE(::utimensat(AT_FDCWD, path.c_str(), long_ago, 0) == 0);
    theirs.touch(); // it has no say
    CHECK(theirs.untouched_for() > std::chrono::hours(1));
    mine.touch();
    CHECK(theirs.untouched_for() < std::chrono::seconds(60));
}
