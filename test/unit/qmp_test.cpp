// SPDX-License-Identifier: GPL-2.0-or-later
// The monitor of a real QEMU, without a guest.
#include "common/process.h"
#include "migrator/qmp.h"

#include <filesystem>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <doctest/doctest.h>

#include <signal.h>
#include <unistd.h>

using namespace drover;
using Json = Qmp::Json;

namespace {

constexpr milliseconds patience(60000);

struct Machine {
    std::string directory;
    Child child;

    Machine() {
        ::signal(SIGPIPE, SIG_IGN);
        char name[] = "/tmp/qmp-test.XXXXXX";
        REQUIRE(::mkdtemp(name) != nullptr);
        directory = name;
        SpawnOptions options;
        options.argv = {"qemu-system-x86_64",
                        "-nodefaults",
                        "-display",
                        "none",
                        "-machine",
                        "none",
                        "-S",
                        "-qmp",
                        "unix:" + socket() + ",server=on,wait=off"};
        child = spawn(options);
        for (int i = 0; i < 500 && ::access(socket().c_str(), F_OK) != 0; ++i) {
            ::usleep(20000);
        }
    }
    ~Machine() {
        child.signal(SIGKILL);
        child.wait(patience);
        std::filesystem::remove_all(directory);
    }
    std::string socket() const { return directory + "/qmp"; }
};

asio::awaitable<void> talk(std::string socket, std::vector<std::string>& events, bool& closed) {
    Qmp::Events handlers;
    handlers.on_event = [&events](const std::string& event, const Json&) {
        events.push_back(event);
    };
    handlers.on_close = [&closed] { closed = true; };
    const auto qmp = co_await Qmp::connect("QEMU", socket, patience, std::move(handlers));
    Json none = Json::object();
    const Json status = co_await qmp->execute("query-status", none, patience);
    CHECK(status["status"] == "prelaunch");
    std::string refused;
    try {
        co_await qmp->execute("no-such-command", none, patience);
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::state);
        refused = error.what();
    }
    CHECK(refused.find("no-such-command") != std::string::npos);

    // Another client gets no greeting while we have the monitor.
    bool timed_out = false;
    try {
        const milliseconds shortly(100);
        Qmp::Events others;
        co_await Qmp::connect("QEMU", socket, shortly, std::move(others));
    } catch (const Error& error) {
        timed_out = error.kind() == ErrorKind::timeout;
    }
    CHECK(timed_out);

    co_await qmp->execute("cont", none, patience);
    co_await qmp->execute("quit", none, patience);
    const Deadline deadline = Clock::now() + patience;
    co_await qmp->wait_closed(deadline);
    bool gone = false;
    try {
        co_await qmp->execute("query-status", none, patience);
    } catch (const Error& error) {
        gone = error.kind() == ErrorKind::peer;
    }
    CHECK(gone);
}

} // namespace

TEST_CASE("qmp: commands, errors, events, and the end") {
    if (::access("/usr/bin/qemu-system-x86_64", X_OK) != 0) {
        MESSAGE("skipped: no QEMU");
        return;
    }
    const Machine machine;
    asio::io_context context(1);
    std::vector<std::string> events;
    bool closed = false;
    std::exception_ptr failure;
    bool over = false;
    auto done = [&](std::exception_ptr thrown) {
        failure = thrown;
        over = true;
    };
    asio::co_spawn(context, talk(machine.socket(), events, closed), std::move(done));
    context.run_for(std::chrono::seconds(150));
    REQUIRE(over);
    if (failure) {
        try {
            std::rethrow_exception(failure);
        } catch (const std::exception& error) {
            FAIL(std::string(error.what()));
        }
    }
    CHECK(closed);
    CHECK(events == std::vector<std::string>{"RESUME", "SHUTDOWN"});
}
