// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/qmp.h"

#include "common/unix_socket.h"

#include <algorithm>
#include <utility>

#include <asio/buffer.hpp>
#include <asio/this_coro.hpp>
#include <asio/write.hpp>

namespace drover {
namespace {

// query-named-block-nodes of a large VM is some 100 KiB; no reply comes near this.
constexpr size_t longest_line = 16 << 20;

} // namespace

asio::awaitable<std::shared_ptr<Qmp>>
Qmp::connect(std::string name, std::string path, milliseconds patience, Events events) {
    const auto executor = co_await asio::this_coro::executor;
    UniqueFd socket = connect_unix(path);
    std::shared_ptr<Qmp> qmp(
        new Qmp(executor, std::move(name), std::move(socket), std::move(events)));
    struct CloseOnFailure {
        std::shared_ptr<Qmp> qmp;
        ~CloseOnFailure() {
            if (qmp) {
                qmp->close();
            }
        }
    } guard{qmp};
    qmp->read_more();
    const Deadline deadline = Clock::now() + patience;
    while (!qmp->greeted_) {
        const bool woken = co_await qmp->changed_.wait_until(deadline);
        if (!woken) {
            throw Error(
                ErrorKind::timeout,
                fmt::format("{}: {} does not greet: another client has the monitor, or it hangs",
                            qmp->name_,
                            path));
        }
        if (qmp->closed_) {
            throw Error(ErrorKind::peer, fmt::format("{}: {}: closed at once", qmp->name_, path));
        }
    }
    Json arguments = Json::object();
    if (qmp->oob_) {
        arguments["enable"] = Json::array({"oob"});
    }
    co_await qmp->execute("qmp_capabilities", std::move(arguments), patience);
    guard.qmp.reset();
    co_return qmp;
}

Qmp::Qmp(asio::any_io_executor executor, std::string name, UniqueFd socket, Events events)
    : executor_(executor), name_(std::move(name)), socket_(executor), events_(std::move(events)),
      changed_(executor) {
    socket_.assign(socket.get());
    socket.release();
}

void Qmp::read_more() {
    socket_.async_read_some(asio::buffer(chunk_),
                            [self = shared_from_this()](asio::error_code error, size_t length) {
                                if (self->closed_) {
                                    return;
                                }
                                if (error || self->received_.size() + length > longest_line) {
                                    self->close();
                                    return;
                                }
                                self->received_.append(self->chunk_.data(), length);
                                self->take_lines();
                                if (!self->closed_) {
                                    self->read_more();
                                }
                            });
}

void Qmp::take_lines() {
    size_t start = 0;
    for (size_t end; !closed_ && (end = received_.find('\n', start)) != std::string::npos;
         start = end + 1) {
        dispatch(received_.substr(start, end - start));
    }
    received_.erase(0, start);
}

void Qmp::dispatch(const std::string& line) {
    const Json message = Json::parse(line, nullptr, false);
    if (!message.is_object()) {
        close();
        return;
    }
    if (message.contains("QMP")) {
        greeted_ = true;
        const Json offered = message["QMP"].is_object()
                                 ? message["QMP"].value("capabilities", Json::array())
                                 : Json::array();
        oob_ = std::find(offered.begin(), offered.end(), Json("oob")) != offered.end();
        changed_.notify();
    } else if (const auto event = message.find("event");
               event != message.end() && event->is_string()) {
        if (events_.on_event) {
            // A copy: the handler may close us.
            const auto handler = events_.on_event;
            handler(event->get<std::string>(), message.value("data", Json()));
        }
    } else if (const auto id = message.find("id");
               id != message.end() && id->is_number_unsigned()) {
        const auto call = calls_.find(id->get<uint64_t>());
        if (call != calls_.end()) { // else: the caller has given up on it
            call->second->reply = message;
            call->second->done.notify();
        }
    }
}

asio::awaitable<Qmp::Json>
Qmp::execute(std::string command, Json arguments, milliseconds patience) {
    Json message{{"execute", command}, {"arguments", std::move(arguments)}};
    return send(std::move(message), std::move(command), patience);
}

asio::awaitable<Qmp::Json>
Qmp::execute_oob(std::string command, Json arguments, milliseconds patience) {
    Json message{{oob_ ? "exec-oob" : "execute", command}, {"arguments", std::move(arguments)}};
    return send(std::move(message), std::move(command), patience);
}

asio::awaitable<Qmp::Json> Qmp::send(Json message, std::string command, milliseconds patience) {
    const auto self = shared_from_this();
    const auto gone = [this, &command] {
        return Error(ErrorKind::peer,
                     fmt::format("{}: {}: it has ended or closed its monitor", name_, command));
    };
    if (closed_) {
        throw gone();
    }
    const uint64_t id = ++last_id_;
    const auto call = std::make_shared<Call>(executor_);
    calls_.emplace(id, call);
    struct Forget {
        Qmp& qmp;
        uint64_t id;
        ~Forget() { qmp.calls_.erase(id); }
    } forget{*this, id};
    message["id"] = id;
    queued_ += message.dump() + "\n";
    write_more();

    const Deadline deadline = Clock::now() + patience;
    while (!call->reply && !closed_) {
        const bool woken = co_await call->done.wait_until(deadline);
        if (!woken) {
            throw_timeout(fmt::format("{}: {}", name_, command), patience);
        }
    }
    if (!call->reply) {
        throw gone();
    }
    if (const auto error = call->reply->find("error"); error != call->reply->end()) {
        throw Error(
            ErrorKind::state,
            fmt::format("{}: {}: {}", name_, command, error->value("desc", "it gives no reason")));
    }
    co_return call->reply->value("return", Json::object());
}

void Qmp::write_more() {
    if (!sending_.empty() || queued_.empty()) {
        return;
    }
    sending_ = std::exchange(queued_, {});
    asio::async_write(socket_,
                      asio::buffer(sending_),
                      [self = shared_from_this()](asio::error_code error, size_t) {
                          self->sending_.clear();
                          if (error) {
                              self->close();
                          }
                          if (!self->closed_) {
                              self->write_more();
                          }
                      });
}

asio::awaitable<void> Qmp::wait_closed(Deadline deadline) {
    const auto self = shared_from_this();
    while (!closed_) {
        const bool woken = co_await changed_.wait_until(deadline);
        if (!woken) {
            throw Error(ErrorKind::timeout, fmt::format("{}: it does not end", name_));
        }
    }
}

void Qmp::close() {
    if (std::exchange(closed_, true)) {
        return;
    }
    const auto self = shared_from_this();
    asio::error_code ignored;
    socket_.close(ignored);
    for (const auto& [id, call] : calls_) {
        call->done.notify();
    }
    changed_.notify();
    const Events events = std::exchange(events_, {}); // may own what owns us
    if (events.on_close) {
        events.on_close();
    }
}

} // namespace drover
