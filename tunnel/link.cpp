// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/link.h"

#include "common/error.h"

#include <algorithm>
#include <chrono>

#include <netinet/in.h>

namespace drover::tunnel {
namespace {

constexpr uint64_t ping_every_ms = 500;
constexpr uint64_t dead_after_ms = 4000;  // without a sign of the peer
constexpr uint64_t dial_every_ms = 1000;  // after a failure
constexpr uint64_t overlap_ms = 3000;     // of a session with the one that replaces it
constexpr uint64_t introduce_ms = 15'000; // from the start of a session to its first ping
constexpr size_t most_strangers = 8, most_pings = 8, receive_batch = 64,
                 receive_batch_bytes = 256 << 10;
constexpr size_t most_of_a_host = 2;     // strangers at one address
constexpr uint64_t most_handshakes = 16; // of strangers that begin in a second
constexpr uint8_t handshake_record = 22, data_record = 23, client_hello = 1;
constexpr size_t record_header = 13;
constexpr size_t largest_udp = 65536;

uint64_t clock_us() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

size_t largest_datagram(const SocketAddress& peer) {
    const auto* const v6 = reinterpret_cast<const sockaddr_in6*>(&peer.storage);
    const bool inside_v4 =
        peer.storage.ss_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr);
    return 1500 - (inside_v4 ? 20 : 40) - 8;
}

// Not protected by any session: of a peer that starts anew, from whatever address.
bool is_client_hello(Bytes datagram) {
    return datagram.size() > record_header && datagram[0] == handshake_record && datagram[3] == 0 &&
           datagram[4] == 0 && datagram[record_header] == client_hello;
}

} // namespace

Link::Link(LinkOptions options, Events events, uint64_t now_ms)
    : options_(std::move(options)), events_(std::move(events)), buffer_(largest_udp) {
    if (options_.dials) {
        dial(now_ms);
    } else {
        listener_ = options_.listener >= 0 ? copy_of_socket(options_.listener)
                                           : bound_socket(options_.address);
    }
}

Link::~Link() {
    if (current_ && current_->trusted) {
        current_->dtls->bye();
    }
    outbox_.flush();
}

DtlsSession::Push Link::push_to(const Session& session) {
    if (session.socket) {
        return [this, fd = session.socket.get()](Bytes datagram) { outbox_.add(fd, {}, datagram); };
    }
    return [this, peer = session.peer](Bytes datagram) {
        outbox_.add(listener_.get(), peer, datagram);
    };
}

Link::SessionPtr Link::make_session(const SocketAddress& peer, UniqueFd socket, uint64_t now_ms) {
    auto session = std::make_unique<Session>();
    session->number = ++last_number_;
    session->peer = peer;
    session->socket = std::move(socket);
    session->started_ms = session->heard_ms = session->retry_ms = now_ms;
    session->mtu = PathMtu(largest_datagram(peer));
    return session;
}

void Link::dial(uint64_t now_ms) {
    dial_again_ms_ = now_ms + dial_every_ms;
    try {
        SessionPtr session =
            make_session(options_.address, connected_socket(options_.address), now_ms);
        session->dtls = std::make_unique<DtlsSession>(
            options_.psk, nullptr, largest_datagram(session->peer), push_to(*session));
        others_.push_back(std::move(session));
    } catch (const Error& error) { // no route, no memory, no descriptor: it may pass
        error_ = error.what();
        return;
    }
    shake(*others_.back(), {}, now_ms);
}

// Of several sessions with one address, the newer one is of a peer that starts anew behind a NAT
// that gives it the same port again: the data is the older one's until the handshake is done.
Link::Session* Link::find(const SocketAddress& peer, Bytes datagram) {
    Session* found = nullptr;
    const auto look_at = [&](Session* session) {
        const bool takes_it = session != nullptr && !session->ended && session->peer == peer &&
                              (session->shaken || datagram[0] != data_record);
        if (takes_it && (found == nullptr || found->number < session->number)) {
            found = session;
        }
    };
    look_at(current_.get());
    for (const SessionPtr& session : others_) {
        look_at(session.get());
    }
    return found != nullptr && found->shaken && is_client_hello(datagram) ? nullptr : found;
}

void Link::add_polls(std::vector<pollfd>& polls) const {
    if (listener_) {
        polls.push_back({listener_.get(), POLLIN, 0});
        return;
    }
    if (current_) {
        polls.push_back({current_->socket.get(), POLLIN, 0});
    }
    for (const SessionPtr& session : others_) {
        polls.push_back({session->socket.get(), POLLIN, 0});
    }
}

void Link::readable(int fd, uint64_t now_ms) {
    for (size_t i = 0, bytes = 0; i < receive_batch && bytes < receive_batch_bytes; ++i) {
        const auto received = receive_from(fd, buffer_);
        if (!received) {
            break;
        }
        bytes += received->bytes.size();
        for (Bytes rest = received->bytes; !rest.empty();) {
            const Bytes datagram = rest.first(std::min(received->size, rest.size()));
            take_from(fd, received->peer, datagram, now_ms);
            rest = rest.subspan(datagram.size());
        }
    }
    forget_ended(now_ms);
}

void Link::take_from(int fd, const SocketAddress& peer, Bytes datagram, uint64_t now_ms) {
    Session* session = nullptr;
    if (listener_) {
        session = find(peer, datagram);
    } else if (current_ && current_->socket.get() == fd) {
        session = current_.get();
    } else {
        const auto found = std::find_if(others_.begin(), others_.end(), [&](const auto& each) {
            return each->socket.get() == fd;
        });
        session = found != others_.end() ? found->get() : nullptr;
    }
    if (session != nullptr && !session->ended) {
        take(*session, datagram, now_ms);
    } else if (listener_) {
        from_stranger(peer, datagram, now_ms);
    }
}

void Link::from_stranger(const SocketAddress& peer, Bytes datagram, uint64_t now_ms) {
    const DtlsSession::Push answer = [&](Bytes bytes) {
        outbox_.add(listener_.get(), peer, bytes);
    };
    const auto prestate = cookies_.admit(peer.bytes(), datagram, answer);
    if (!prestate) {
        return;
    }
    if (!may_shake(peer, now_ms)) {
        return; // who has the key tries again
    }
    SessionPtr session = make_session(peer, UniqueFd(), now_ms);
    try {
        session->dtls = std::make_unique<DtlsSession>(
            options_.psk, &*prestate, largest_datagram(peer), push_to(*session));
    } catch (const Error& error) {
        error_ = error.what();
        return;
    }
    others_.push_back(std::move(session));
    take(*others_.back(), datagram, now_ms);
}

// Each costs some arithmetic, and those that do not end have a time-out.
bool Link::may_shake(const SocketAddress& peer, uint64_t now_ms) {
    size_t strangers = 0, of_its_host = 0;
    for (const SessionPtr& session : others_) {
        strangers += session->trusted ? 0 : 1;
        of_its_host += !session->trusted && same_host(session->peer, peer) ? 1 : 0;
    }
    if (now_ms >= handshakes_since_ms_ + 1000) {
        handshakes_since_ms_ = now_ms;
        handshakes_ = 0;
    }
    return strangers < most_strangers && of_its_host < most_of_a_host &&
           handshakes_++ < most_handshakes;
}

void Link::take(Session& session, Bytes datagram, uint64_t now_ms) {
    if (!session.shaken) {
        shake(session, datagram, now_ms);
        return;
    }
    const bool goes_on = session.dtls->receive(datagram, [&](Bytes bytes, uint64_t number) {
        take_record(session, bytes, number, now_ms);
    });
    if (!goes_on) {
        session.ended = true;
    }
}

void Link::shake(Session& session, Bytes datagram, uint64_t now_ms) {
    try {
        session.shaken = session.dtls->handshake(datagram);
    } catch (const Error& error) {
        error_ = fmt::format("{}: {}", to_text(session.peer), error.what());
        session.ended = true;
        return;
    }
    if (!session.shaken) {
        session.retry_ms = now_ms + session.dtls->handshake_timer_ms();
        return;
    }
    session.heard_ms = now_ms;
    session.next_ping_ms = now_ms;
    send_ping(session, 0, now_ms);
}

void Link::take_record(Session& session, Bytes bytes, uint64_t number, uint64_t now_ms) {
    const auto record = parse_record(bytes);
    if (!record) {
        return;
    }
    session.heard_ms = now_ms;
    if (const auto* const ping = std::get_if<Ping>(&*record)) {
        take_ping(session, *ping, now_ms);
    } else if (session.trusted) {
        events_.record(*record, {session.number, number});
    }
}

void Link::take_ping(Session& session, const Ping& ping, uint64_t now_ms) {
    if (ping.identity != options_.identity) {
        error_ = fmt::format("{}: the other end was told of another MAC, address or gateway",
                             to_text(session.peer));
        session.ended = true;
        return;
    }
    if (!session.trusted) {
        trust(session, now_ms);
    }
    if (!ping.answer) {
        const Ping answer{true, phase_, ping.id, options_.identity};
        session.dtls->send(ping_record(answer));
    } else {
        const auto sent = std::find_if(session.pings.begin(),
                                       session.pings.end(),
                                       [&](const auto& each) { return each.id == ping.id; });
        if (sent != session.pings.end()) {
            session.mtu.answered(sent->size, now_ms);
            const uint64_t took = clock_us() - sent->at_us;
            // As TCP smooths it.
            round_trip_us_ = round_trip_us_ ? (*round_trip_us_ * 7 + took) / 8 : took;
            session.pings.erase(sent);
        }
    }
    if (&session == current_.get()) {
        alive_ = true;
        error_.clear();
        events_.peer_phase(ping.phase);
    }
}

// The newest session whose peer has shown that it is there replaces the others, which are still
// listened to for what is on its way.
void Link::trust(Session& session, uint64_t now_ms) {
    session.trusted = true;
    if (current_ && current_->number > session.number) {
        session.leaves_ms = now_ms + overlap_ms;
        return;
    }
    const auto self = std::find_if(
        others_.begin(), others_.end(), [&](const auto& each) { return each.get() == &session; });
    std::swap(current_, *self);
    if (*self) {
        (*self)->leaves_ms = now_ms + overlap_ms;
        (*self)->ended = listener_ && (*self)->peer == current_->peer; // it has started anew
    } else {
        others_.erase(self);
    }
}

// datagram: its whole size; 0: as small as can be.
void Link::send_ping(Session& session, size_t datagram, uint64_t now_ms) {
    const size_t overhead = session.dtls->overhead();
    const size_t record = datagram > overhead + ping_size ? datagram - overhead : ping_size;
    const Ping ping{false, phase_, ++last_ping_, options_.identity};
    if (session.pings.size() == most_pings) {
        session.pings.pop_front();
    }
    session.pings.push_back({ping.id, record + overhead, clock_us()});
    session.next_ping_ms = now_ms + ping_every_ms;
    session.dtls->send(ping_record(ping, record));
}

void Link::forget_ended(uint64_t now_ms) {
    outbox_.flush(); // their sockets will be closed
    std::erase_if(others_, [&](const SessionPtr& session) {
        return session->ended || (session->leaves_ms != 0 && now_ms >= session->leaves_ms);
    });
    if (current_ && current_->ended) {
        current_.reset();
        alive_ = false;
    }
}

uint64_t Link::tick(uint64_t now_ms) {
    for (size_t i = 0; i < others_.size(); ++i) {
        Session& session = *others_[i];
        if (!session.shaken && now_ms >= session.retry_ms) {
            shake(session, {}, now_ms);
        } else if (session.shaken && !session.trusted && now_ms >= session.next_ping_ms) {
            send_ping(session, 0, now_ms);
        }
        if (!session.trusted && now_ms >= session.started_ms + introduce_ms) {
            session.ended = true;
        }
    }
    if (current_) {
        Session& session = *current_;
        if (alive_) { // probes that nobody could answer say nothing of their size
            if (const auto size = session.mtu.probe(now_ms)) {
                send_ping(session, *size, now_ms);
            }
        }
        if (now_ms >= session.next_ping_ms) {
            send_ping(session, 0, now_ms);
        }
        if (alive_ && now_ms >= session.heard_ms + dead_after_ms) {
            alive_ = false;
            error_ = fmt::format("{} does not answer", to_text(session.peer));
        }
    }
    if (options_.dials && now_ms >= dial_again_ms_ && others_.empty() &&
        (!current_ || !alive_ || now_ms >= current_->started_ms + options_.rekey_ms)) {
        dial(now_ms);
    }
    forget_ended(now_ms);
    return 100;
}

size_t Link::room() const {
    return current_ ? current_->mtu.size() - current_->dtls->overhead() : 0;
}

void Link::send(Bytes record) {
    if (current_) {
        current_->dtls->send(record);
    }
}

void Link::set_phase(Phase phase, uint64_t now_ms) {
    phase_ = phase;
    if (current_) {
        send_ping(*current_, 0, now_ms);
    }
    flush();
}

Link::Status Link::status() const {
    Status status;
    status.up = up();
    status.error = error_;
    status.sessions = last_number_;
    if (current_) {
        status.peer = to_text(current_->peer);
        status.cipher = current_->dtls->cipher();
        status.datagram_size = current_->mtu.size();
        status.discarded = current_->dtls->discarded();
        status.round_trip_us = round_trip_us_;
    }
    return status;
}

} // namespace drover::tunnel
