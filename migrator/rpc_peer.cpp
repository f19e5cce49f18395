// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/rpc_peer.h"

#include "common/unix_socket.h"

#include <array>
#include <utility>

#include <asio/buffer.hpp>
#include <asio/post.hpp>
#include <asio/write.hpp>

#include <fcntl.h>

namespace drover {

std::shared_ptr<RpcPeer> RpcPeer::create(asio::any_io_executor executor,
                                         std::string name,
                                         UniqueFd input,
                                         UniqueFd output,
                                         Events events) {
    std::shared_ptr<RpcPeer> peer(new RpcPeer(std::move(executor),
                                              std::move(name),
                                              std::move(input),
                                              std::move(output),
                                              std::move(events)));
    peer->read_more();
    return peer;
}

RpcPeer::RpcPeer(asio::any_io_executor executor,
                 std::string name,
                 UniqueFd input,
                 UniqueFd output,
                 Events events)
    : executor_(executor), name_(std::move(name)), input_(executor), output_(executor),
      events_(std::move(events)), written_(executor) {
    // assign() registers with epoll and may throw (a regular file as stdin): the descriptor
    // changes hands only when it has not.
    input_.assign(input.get());
    input.release();
    output_.assign(output.get());
    output.release();
}

void RpcPeer::read_more() {
    input_.async_read_some(
        asio::buffer(chunk_), [self = shared_from_this()](asio::error_code error, size_t length) {
            if (self->closed_) {
                return;
            }
            if (error) {
                self->close(error == asio::error::eof ? "it closed the connection"
                                                      : error.message());
                return;
            }
            try {
                self->lines_.append({self->chunk_.data(), length});
                self->take_lines();
            } catch (const std::exception& broken) { // nothing it says ends the event loop
                self->close(broken.what());
                return;
            }
            if (!self->closed_) {
                self->read_more();
            }
        });
}

void RpcPeer::take_lines() {
    while (const auto line = lines_.next()) {
        if (!line->empty()) {
            dispatch(*line);
        }
        if (closed_) {
            return;
        }
    }
}

void RpcPeer::dispatch(const std::string& line) {
    rpc::Message message = [&] {
        try {
            return rpc::parse(line);
        } catch (const Error& error) {
            // A login banner or a shell's complaint in the channel is the usual cause: show it.
            throw Error(ErrorKind::peer,
                        fmt::format("it said something that is not JSON-RPC: '{}' ({})",
                                    line.substr(0, 200),
                                    error.what()));
        }
    }();
    if (auto* request = std::get_if<rpc::Request>(&message)) {
        auto& handler = request->id.is_null() ? events_.on_notification : events_.on_request;
        if (handler) {
            handler(std::move(*request));
        } else if (!request->id.is_null()) {
            reply(request->id, Error(ErrorKind::usage, "no method is served here"));
        }
        return;
    }
    auto& response = std::get<rpc::Response>(message);
    if (!response.id.is_number_unsigned()) {
        throw Error(ErrorKind::peer,
                    response.error ? response.error->what() : "a reply without a request");
    }
    const auto call = calls_.find(response.id.get<uint64_t>());
    if (call != calls_.end()) { // else: the caller has given up on it
        call->second->response = std::move(response);
        call->second->done.notify();
    }
}

asio::awaitable<rpc::Json>
RpcPeer::call(std::string method, rpc::Json params, milliseconds patience) {
    const auto self = shared_from_this();
    if (closed_) {
        throw Error(ErrorKind::peer, fmt::format("{}: {}: {}", name_, method, close_reason_));
    }
    const uint64_t id = ++last_id_;
    const auto call = std::make_shared<Call>(executor_);
    calls_.emplace(id, call);
    struct Forget {
        RpcPeer& peer;
        uint64_t id;
        ~Forget() { peer.calls_.erase(id); }
    } forget{*this, id};
    rpc::Request request{id, method, std::move(params)};
    send(rpc::serialize(request));

    const Deadline deadline = Clock::now() + patience;
    while (!call->response && !closed_) {
        const bool woken = co_await call->done.wait_until(deadline);
        if (!woken) {
            throw_timeout(fmt::format("{}: {}", name_, method), patience);
        }
    }
    if (!call->response) {
        throw Error(ErrorKind::peer, fmt::format("{}: {}: {}", name_, method, close_reason_));
    }
    if (const auto& error = call->response->error) {
        throw Error(error->kind(), fmt::format("{}: {}: {}", name_, method, error->what()));
    }
    co_return std::move(call->response->result);
}

void RpcPeer::notify(const std::string& method, rpc::Json params) {
    send(rpc::serialize(rpc::Request{nullptr, method, std::move(params)}));
}

void RpcPeer::reply(const rpc::Json& id, rpc::Json result) {
    send(rpc::serialize(rpc::Response{id, std::move(result), std::nullopt}));
}

void RpcPeer::reply(const rpc::Json& id, Error error) {
    send(rpc::serialize(rpc::Response{id, nullptr, std::move(error)}));
}

void RpcPeer::send(std::string line) {
    if (closed_ || overflowed_) {
        return;
    }
    if (queued_.size() + line.size() > max_queued_bytes) {
        overflowed_ = true; // nothing may overtake what is dropped
        // By and by: the caller is in the midst of something.
        asio::post(executor_, [self = shared_from_this()] {
            self->close("it does not read what it is told");
        });
        return;
    }
    queued_ += line;
    write_more();
}

void RpcPeer::write_more() {
    if (!sending_.empty() || queued_.empty()) {
        return;
    }
    sending_ = std::exchange(queued_, {});
    asio::async_write(output_,
                      asio::buffer(sending_),
                      [self = shared_from_this()](asio::error_code error, size_t) {
                          self->sending_.clear();
                          if (self->closed_) {
                              return;
                          }
                          if (error) {
                              // What it said before it went away explains more than EPIPE:
                              // the reader finds it, and then the end of file.
                              self->queued_.clear();
                              asio::error_code ignored;
                              self->output_.close(ignored);
                              self->written_.notify();
                              return;
                          }
                          self->write_more();
                          self->written_.notify();
                      });
}

asio::awaitable<void> RpcPeer::flush(milliseconds patience) {
    const auto self = shared_from_this();
    const Deadline deadline = Clock::now() + patience;
    while (!closed_ && output_.is_open() && !(sending_.empty() && queued_.empty())) {
        const bool woken = co_await written_.wait_until(deadline);
        if (!woken) {
            co_return;
        }
    }
}

void RpcPeer::close(const std::string& reason) {
    if (std::exchange(closed_, true)) {
        return;
    }
    const auto self = shared_from_this();
    close_reason_ = reason;
    asio::error_code ignored;
    input_.close(ignored);
    output_.close(ignored);
    for (const auto& [id, call] : calls_) {
        call->done.notify();
    }
    written_.notify();
    // The handlers may own what owns this peer: let go of them.
    const Events events = std::exchange(events_, {});
    if (events.on_close) {
        events.on_close(reason);
    }
}

std::shared_ptr<RpcPeer> connect_peer(asio::any_io_executor executor,
                                      std::string name,
                                      const std::string& path,
                                      RpcPeer::Events events) {
    UniqueFd input = connect_unix(path);
    // asio wants an owner for each direction.
    UniqueFd output(::fcntl(input.get(), F_DUPFD_CLOEXEC, 0));
    if (!output) {
        throw_errno("dup");
    }
    return RpcPeer::create(std::move(executor),
                           std::move(name),
                           std::move(input),
                           std::move(output),
                           std::move(events));
}

} // namespace drover
