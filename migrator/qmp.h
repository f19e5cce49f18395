// SPDX-License-Identifier: GPL-2.0-or-later
// A QEMU monitor (QMP) on a unix socket: commands with deadlines, events to a
// callback. QEMU answers one monitor connection at a time: while another client has it, the
// greeting does not come. On the one thread of its executor. The process must ignore SIGPIPE.
#pragma once

#include "common/unique_fd.h"
#include "migrator/async.h"

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include <asio/posix/stream_descriptor.hpp>

namespace drover {

class Qmp : public std::enable_shared_from_this<Qmp> {
public:
    using Json = nlohmann::json;
    struct Events {
        // "STOP", its "data" (null if it has none). Not thrown from.
        std::function<void(const std::string& event, const Json& data)> on_event;
        // Once: QEMU has ended, or closed the monitor.
        std::function<void()> on_close;
    };

    // Connects, reads the greeting, negotiates. Throws Error(peer) or Error(timeout) that names
    // the path. `name` is for messages: "QEMU of vm1".
    static asio::awaitable<std::shared_ptr<Qmp>>
    connect(std::string name, std::string path, milliseconds patience, Events events);

    // "return" of the command. Throws Error(state) with QEMU's text, Error(timeout), Error(peer)
    // when the monitor is or gets closed, Error(cancelled). Commands run in order.
    asio::awaitable<Json> execute(std::string command, Json arguments, milliseconds patience);
    // The same, out of band where the monitor can do that: also while QEMU's main loop waits for a
    // page of its guest. Only commands that allow it.
    asio::awaitable<Json> execute_oob(std::string command, Json arguments, milliseconds patience);
    asio::awaitable<void> wait_closed(Deadline deadline); // Error(timeout)
    void close();
    bool closed() const { return closed_; }

private:
    struct Call {
        explicit Call(const asio::any_io_executor& executor) : done(executor) {}
        Notifier done;
        std::optional<Json> reply;
    };

    Qmp(asio::any_io_executor executor, std::string name, UniqueFd socket, Events events);
    asio::awaitable<Json> send(Json message, std::string command, milliseconds patience);
    void read_more();
    void take_lines();
    void dispatch(const std::string& line);
    void write_more();

    asio::any_io_executor executor_;
    std::string name_;
    asio::posix::stream_descriptor socket_;
    Events events_;
    std::string received_, sending_, queued_; // sending_ is in the kernel's hands
    std::array<char, 16384> chunk_{};
    std::map<uint64_t, std::shared_ptr<Call>> calls_;
    uint64_t last_id_ = 0;
    Notifier changed_; // greeted_ or closed_
    bool greeted_ = false;
    bool oob_ = false; // commands may be sent out of band
    bool closed_ = false;
};

} // namespace drover
