// SPDX-License-Identifier: GPL-2.0-or-later
// DTLS 1.2 with a pre-shared key: one session, over datagrams that its owner gives it and takes
// from it. Forged, damaged and replayed datagrams are dropped by it. One thread at a time.
#pragma once

#include "tunnel/core/address.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <gnutls/dtls.h>
#include <gnutls/gnutls.h>

namespace drover::tunnel {

struct Psk {
    std::string user;
    std::string key; // raw bytes
};

// A file of one line, `user:hexkey`, as GnuTLS and nbdkit have it (common/secrets.h). `name` is for
// the text of an error. Throws Error(usage) for anything else, or a key of fewer than 16 bytes.
Psk parse_psk(std::string_view text, const std::string& name);

class DtlsSession {
public:
    // How it sends a datagram. Failures are losses.
    using Push = std::function<void(Bytes datagram)>;

    // `prestate`: where it answers a ClientHello whose cookie was checked; null where it dials.
    // `psk` must outlive it. datagram_size: of UDP payload, no record is larger. Throws
    // Error(peer).
    DtlsSession(const Psk& psk,
                const gnutls_dtls_prestate_st* prestate,
                size_t datagram_size,
                Push push);
    ~DtlsSession();
    DtlsSession(const DtlsSession&) = delete;
    DtlsSession& operator=(const DtlsSession&) = delete;

    // Goes on with the handshake, with what has come, or to repeat what was lost. True once it is
    // done. Throws Error(peer) when it has failed, with Error(timeout) after 8 s.
    bool handshake(Bytes datagram = {});
    uint64_t handshake_timer_ms() const; // when to call it again

    // What is in a datagram: record(bytes, number) for each, the number growing in the order of
    // sending. False if the peer has closed the session, or it is broken.
    template <class Record>
    bool receive(Bytes datagram, Record record) {
        put_in(datagram);
        for (;;) {
            uint64_t number = 0;
            const ssize_t size = next_record(number);
            if (size <= 0) {
                return size == 0;
            }
            record(Bytes(buffer_.data(), static_cast<size_t>(size)), number);
        }
    }

    // A record of at most datagram_size - overhead() bytes.
    void send(Bytes record);
    size_t overhead() const { return overhead_; }
    uint64_t discarded() const; // datagrams that were forged, damaged or replayed
    std::string cipher() const;
    void bye(); // says that it ends; nothing is waited for

private:
    static ssize_t push(gnutls_transport_ptr_t self, const void* data, size_t size);
    static ssize_t pull(gnutls_transport_ptr_t self, void* data, size_t size);
    static int pull_timeout(gnutls_transport_ptr_t self, unsigned int ms);
    static int key_of(gnutls_session_t session, const char* user, gnutls_datum_t* key);

    void put_in(Bytes datagram);
    ssize_t next_record(uint64_t& number); // 0: no more; below: the end

    const Psk& psk_;
    const Push push_;
    const size_t datagram_size_;
    Bytes inbox_; // a datagram that was not taken yet
    gnutls_session_t session_ = nullptr;
    gnutls_psk_client_credentials_t client_ = nullptr;
    gnutls_psk_server_credentials_t server_ = nullptr;
    size_t overhead_ = 0;
    uint64_t malformed_ = 0;
    std::vector<uint8_t> buffer_;
};

// The cookies of ClientHellos (RFC 6347, 4.2.1): nothing is kept of who has not shown that it gets
// what is sent to its address.
class CookieJar {
public:
    CookieJar();
    ~CookieJar();
    CookieJar(const CookieJar&) = delete;
    CookieJar& operator=(const CookieJar&) = delete;

    // A datagram of a stranger: the prestate of a session, or nullopt after asking it to come again
    // with a cookie, or because it is no ClientHello.
    std::optional<gnutls_dtls_prestate_st>
    admit(Bytes address, Bytes datagram, const DtlsSession::Push& push);

private:
    gnutls_datum_t key_{};
};

} // namespace drover::tunnel
