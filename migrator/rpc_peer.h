// SPDX-License-Identifier: GPL-2.0-or-later
// One end of a JSON-RPC connection (common/json_rpc.h) on asio: calls with
// deadlines, replies, notifications. Over a unix socket to a plugin's control
// socket, over pipes to an agent, over stdio in the agent itself. All of it
// runs on the one thread of its executor. The process must ignore SIGPIPE.
#pragma once

#include "common/json_rpc.h"
#include "common/unique_fd.h"
#include "migrator/async.h"

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <asio/posix/stream_descriptor.hpp>

namespace drover {

// For a peer that does not read; one for which more would have to be kept is closed.
inline constexpr size_t max_queued_bytes = 16 << 20;

class RpcPeer : public std::enable_shared_from_this<RpcPeer> {
public:
    // Called on the executor; must not throw. on_request gets each request, in order, and
    // owes one reply to its id. on_close is called once; a null function is allowed.
    struct Events {
        std::function<void(rpc::Request)> on_request;
        std::function<void(rpc::Request)> on_notification;
        std::function<void(const std::string& reason)> on_close;
    };

    // `name` is for messages: "the agent at site-b", "disk root". The same descriptor may be
    // given twice by way of dup(). Reads from now on.
    static std::shared_ptr<RpcPeer> create(asio::any_io_executor executor,
                                           std::string name,
                                           UniqueFd input,
                                           UniqueFd output,
                                           Events events);

    // The result. Throws the peer's Error, with name and method before its text; Error(timeout)
    // after `patience`; Error(peer) when the connection is or gets closed; Error(cancelled).
    asio::awaitable<rpc::Json> call(std::string method, rpc::Json params, milliseconds patience);
    void notify(const std::string& method, rpc::Json params);
    void reply(const rpc::Json& id, rpc::Json result);
    void reply(const rpc::Json& id, Error error);

    // Waits until what was said so far is written, or the deadline, or a close.
    asio::awaitable<void> flush(milliseconds patience);
    void close(const std::string& reason);
    bool closed() const { return closed_; }
    const std::string& name() const { return name_; }

private:
    struct Call {
        explicit Call(const asio::any_io_executor& executor) : done(executor) {}
        Notifier done;
        std::optional<rpc::Response> response;
    };

    RpcPeer(asio::any_io_executor executor,
            std::string name,
            UniqueFd input,
            UniqueFd output,
            Events events);
    void read_more();
    void take_lines();
    void dispatch(const std::string& line);
    void send(std::string line);
    void write_more();

    asio::any_io_executor executor_;
    std::string name_;
    asio::posix::stream_descriptor input_, output_;
    Events events_;
    rpc::LineBuffer lines_;
    std::array<char, 16384> chunk_{};
    std::string sending_, queued_; // sending_ is in the kernel's hands
    Notifier written_;
    std::map<uint64_t, std::shared_ptr<Call>> calls_;
    uint64_t last_id_ = 0;
    bool closed_ = false, overflowed_ = false;
    std::string close_reason_;
};

// A peer on a unix socket. Throws Error(io) with the errno if nobody listens there.
std::shared_ptr<RpcPeer> connect_peer(asio::any_io_executor executor,
                                      std::string name,
                                      const std::string& path,
                                      RpcPeer::Events events);

} // namespace drover
