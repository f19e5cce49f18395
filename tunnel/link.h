// SPDX-License-Identifier: GPL-2.0-or-later
// The link between the two ends: it dials or listens, keeps a session alive, finds the size of
// datagrams, and replaces a session by a new one without a gap. Non-blocking; one thread.
#pragma once

#include "tunnel/core/framing.h"
#include "tunnel/core/hold_queue.h"
#include "tunnel/core/path_mtu.h"
#include "tunnel/dtls_session.h"
#include "tunnel/udp.h"

#include <deque>

#include <poll.h>

namespace drover::tunnel {

struct LinkOptions {
    bool dials = false; // else it listens
    SocketAddress address;
    int listener = -1; // instead of an address to listen at: a bound UDP socket, which stays open
    Psk psk;
    std::array<uint8_t, 16> identity{}; // of the NIC; the peer must have the same
    uint64_t rekey_ms = 3'600'000;      // the dialling end replaces a session after that
};

class Link {
public:
    struct Events {
        // A frame or piece of one that the peer sent. The bytes are valid during the call.
        std::function<void(const Record&, HoldQueue::Order)> record;
        // What each ping and pong says of the peer.
        std::function<void(Phase)> peer_phase;
    };

    // Throws Error(io) if it can't listen.
    Link(LinkOptions options, Events events, uint64_t now_ms);
    ~Link();
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    void add_polls(std::vector<pollfd>& polls) const;
    void readable(int fd, uint64_t now_ms); // of one of these
    // Timers: pings, repeats, dialling. Returns in how many ms it wants to be called again.
    uint64_t tick(uint64_t now_ms);

    // Both ends have shown that they have the key and mean the same NIC, and the peer answers.
    bool up() const { return current_ != nullptr && alive_; }
    // How large a record may be.
    size_t room() const;
    // Dropped while there is no session. It may wait for others until the next flush().
    void send(Bytes record);
    void flush() { outbox_.flush(); }
    // In the next pings; the first goes out at once.
    void set_phase(Phase phase, uint64_t now_ms);

    // Of the last attempt; "" since the link came up.
    const std::string& error() const { return error_; }

    struct Status {
        bool up = false;
        std::string error;
        std::string peer, cipher;
        size_t datagram_size = 0;
        std::optional<uint64_t> round_trip_us;
        uint64_t sessions = 0, discarded = 0;
    };
    Status status() const;

private:
    struct Session {
        uint64_t number = 0;
        SocketAddress peer;
        UniqueFd socket; // -1: the listener's
        std::unique_ptr<DtlsSession> dtls;
        bool shaken = false;  // the handshake is done
        bool trusted = false; // and the peer has said what it is
        bool ended = false;
        uint64_t started_ms = 0, retry_ms = 0, heard_ms = 0, leaves_ms = 0;
        PathMtu mtu{PathMtu::base};
        struct Sent {
            uint32_t id;
            size_t size;
            uint64_t at_us;
        };
        std::deque<Sent> pings; // that were not answered yet, the latest ones
        uint64_t next_ping_ms = 0;
    };
    using SessionPtr = std::unique_ptr<Session>;

    void dial(uint64_t now_ms);
    void take_from(int fd, const SocketAddress& peer, Bytes datagram, uint64_t now_ms);
    void take(Session& session, Bytes datagram, uint64_t now_ms);
    void shake(Session& session, Bytes datagram, uint64_t now_ms);
    void take_record(Session& session, Bytes bytes, uint64_t number, uint64_t now_ms);
    void take_ping(Session& session, const Ping& ping, uint64_t now_ms);
    void trust(Session& session, uint64_t now_ms);
    void send_ping(Session& session, size_t datagram, uint64_t now_ms);
    void from_stranger(const SocketAddress& peer, Bytes datagram, uint64_t now_ms);
    bool may_shake(const SocketAddress& peer, uint64_t now_ms);
    Session* find(const SocketAddress& peer, Bytes datagram);
    SessionPtr make_session(const SocketAddress& peer, UniqueFd socket, uint64_t now_ms);
    DtlsSession::Push push_to(const Session& session);
    void forget_ended(uint64_t now_ms);

    const LinkOptions options_;
    const Events events_;
    UniqueFd listener_;
    Outbox outbox_;
    CookieJar cookies_;
    SessionPtr current_;
    std::vector<SessionPtr> others_; // in their handshake, or on their way out
    bool alive_ = false;
    Phase phase_ = Phase::ready;
    uint64_t last_number_ = 0;
    uint64_t handshakes_ = 0, handshakes_since_ms_ = 0; // strangers', in the running second
    uint32_t last_ping_ = 0;
    uint64_t dial_again_ms_ = 0;
    std::string error_;
    std::optional<uint64_t> round_trip_us_;
    std::vector<uint8_t> buffer_;
};

} // namespace drover::tunnel
