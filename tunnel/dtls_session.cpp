// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/dtls_session.h"

#include "common/error.h"
#include "common/secrets.h"

#include <algorithm>
#include <cstring>

namespace drover::tunnel {
namespace {

// AES-GCM, which CPUs have instructions for, comes with DHE in GnuTLS 3.7 but not with ECDHE.
constexpr const char* priorities =
    "NONE:+VERS-DTLS1.2:+DHE-PSK:+ECDHE-PSK:+AES-256-GCM:+AES-128-GCM:+CHACHA20-POLY1305:+AEAD:"
    "+COMP-NULL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-FFDHE3072:+SIGN-ALL:%SERVER_PRECEDENCE";
constexpr unsigned repeat_ms = 300, give_up_ms = 8000;
constexpr size_t least_key = 16, largest_record = 16384 + 256;

void check(int result, const char* what) {
    if (result < 0) {
        throw Error(ErrorKind::peer, fmt::format("{}: {}", what, gnutls_strerror(result)));
    }
}

gnutls_datum_t datum(const std::string& text) {
    return {reinterpret_cast<unsigned char*>(const_cast<char*>(text.data())),
            static_cast<unsigned>(text.size())};
}

// Whole records and nothing else. GnuTLS would wait for the rest of a record that claims to be
// longer than its datagram, and lose the next one to it: anybody could send such.
bool has_whole_records(Bytes datagram) {
    constexpr size_t header = 13;
    while (datagram.size() > header) {
        const size_t length = static_cast<size_t>(datagram[11]) << 8 | datagram[12];
        const bool dtls = datagram[0] >= 20 && datagram[0] <= 23 && datagram[1] == 0xfe &&
                          (datagram[2] == 0xfd || datagram[2] == 0xff);
        if (!dtls || length > datagram.size() - header) {
            return false;
        }
        datagram = datagram.subspan(header + length);
    }
    return datagram.empty();
}

} // namespace

Psk parse_psk(std::string_view text, const std::string& name) {
    if (!text.empty() && text.back() == '\n') {
        text.remove_suffix(1);
    }
    const size_t colon = text.find(':');
    const auto key =
        colon == std::string_view::npos ? std::nullopt : from_hex(text.substr(colon + 1));
    if (colon == 0 || !key || key->size() < least_key) {
        throw Error(
            ErrorKind::usage,
            fmt::format("{}: one line `user:hexkey` is expected, of a key of {} bytes or more",
                        name,
                        least_key));
    }
    return {std::string(text.substr(0, colon)), *key};
}

DtlsSession::DtlsSession(const Psk& psk,
                         const gnutls_dtls_prestate_st* prestate,
                         size_t datagram_size,
                         Push push)
    : psk_(psk), push_(std::move(push)), datagram_size_(datagram_size), buffer_(largest_record) {
    check(gnutls_init(&session_,
                      (prestate != nullptr ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_DATAGRAM |
                          GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS),
          "DTLS");
    const auto fail_freely = [this] { // the destructor does not run for what was not constructed
        gnutls_deinit(session_);
        if (client_ != nullptr) {
            gnutls_psk_free_client_credentials(client_);
        }
        if (server_ != nullptr) {
            gnutls_psk_free_server_credentials(server_);
        }
    };
    try {
        check(gnutls_priority_set_direct(session_, priorities, nullptr), "DTLS");
        if (prestate != nullptr) {
            check(gnutls_psk_allocate_server_credentials(&server_), "DTLS");
            gnutls_psk_set_server_credentials_function(server_, key_of);
            check(gnutls_psk_set_server_known_dh_params(server_, GNUTLS_SEC_PARAM_HIGH), "DTLS");
            check(gnutls_credentials_set(session_, GNUTLS_CRD_PSK, server_), "DTLS");
        } else {
            const gnutls_datum_t key = datum(psk.key);
            check(gnutls_psk_allocate_client_credentials(&client_), "DTLS");
            check(gnutls_psk_set_client_credentials(
                      client_, psk.user.c_str(), &key, GNUTLS_PSK_KEY_RAW),
                  "DTLS");
            check(gnutls_credentials_set(session_, GNUTLS_CRD_PSK, client_), "DTLS");
        }
    } catch (...) {
        fail_freely();
        throw;
    }
    gnutls_session_set_ptr(session_, this);
    gnutls_transport_set_ptr(session_, this);
    gnutls_transport_set_push_function(session_, &DtlsSession::push);
    gnutls_transport_set_pull_function(session_, &DtlsSession::pull);
    gnutls_transport_set_pull_timeout_function(session_, pull_timeout);
    gnutls_dtls_set_timeouts(session_, repeat_ms, give_up_ms);
    constexpr unsigned handshake_size = 1200; // as PathMtu::base
    gnutls_dtls_set_mtu(session_, handshake_size);
    if (prestate != nullptr) {
        gnutls_dtls_prestate_set(session_, const_cast<gnutls_dtls_prestate_st*>(prestate));
    }
}

DtlsSession::~DtlsSession() {
    gnutls_deinit(session_);
    if (client_ != nullptr) {
        gnutls_psk_free_client_credentials(client_);
    }
    if (server_ != nullptr) {
        gnutls_psk_free_server_credentials(server_);
    }
}

void DtlsSession::put_in(Bytes datagram) {
    const bool whole = has_whole_records(datagram);
    inbox_ = whole ? datagram : Bytes();
    malformed_ += whole ? 0 : 1;
}

uint64_t DtlsSession::discarded() const {
    return malformed_ + gnutls_record_get_discarded(session_);
}

bool DtlsSession::handshake(Bytes datagram) {
    put_in(datagram);
    const int result = gnutls_handshake(session_);
    if (result == GNUTLS_E_SUCCESS) {
        gnutls_dtls_set_mtu(session_, static_cast<unsigned>(datagram_size_));
        overhead_ = datagram_size_ - gnutls_dtls_get_data_mtu(session_);
        return true;
    }
    if (result == GNUTLS_E_TIMEDOUT) {
        throw Error(ErrorKind::timeout,
                    "the handshake got no answer that its key opens: the key may be wrong, or UDP "
                    "does not pass");
    }
    if (gnutls_error_is_fatal(result) != 0) {
        check(result, "the handshake failed");
    }
    return false;
}

uint64_t DtlsSession::handshake_timer_ms() const {
    return std::max(1U, gnutls_dtls_get_timeout(session_));
}

ssize_t DtlsSession::next_record(uint64_t& number) {
    for (;;) {
        unsigned char order[8];
        const ssize_t size =
            gnutls_record_recv_seq(session_, buffer_.data(), buffer_.size(), order);
        if (size > 0) {
            for (const unsigned char byte : order) {
                number = number << 8 | byte;
            }
            return size;
        }
        if (size == 0) {
            return -1; // a close notification
        }
        if (size == GNUTLS_E_AGAIN || size == GNUTLS_E_TIMEDOUT) {
            if (inbox_.empty()) {
                return 0;
            }
            continue;
        }
        if (gnutls_error_is_fatal(static_cast<int>(size)) != 0) {
            return -1;
        }
        // A warning, or a wish to start anew, which is not granted: the next record.
    }
}

void DtlsSession::send(Bytes record) {
    gnutls_record_send(session_, record.data(), record.size()); // what can't be sent is lost
}

std::string DtlsSession::cipher() const {
    char* const text = gnutls_session_get_desc(session_);
    std::string copy = text != nullptr ? text : "";
    gnutls_free(text);
    return copy;
}

void DtlsSession::bye() {
    gnutls_bye(session_, GNUTLS_SHUT_WR);
}

ssize_t DtlsSession::push(gnutls_transport_ptr_t self, const void* data, size_t size) {
    static_cast<DtlsSession*>(self)->push_(Bytes(static_cast<const uint8_t*>(data), size));
    return static_cast<ssize_t>(size);
}

ssize_t DtlsSession::pull(gnutls_transport_ptr_t self, void* data, size_t size) {
    auto& session = *static_cast<DtlsSession*>(self);
    if (session.inbox_.empty()) {
        gnutls_transport_set_errno(session.session_, EAGAIN);
        return -1;
    }
    const size_t taken = std::min(size, session.inbox_.size());
    std::memcpy(data, session.inbox_.data(), taken);
    session.inbox_ = {};
    return static_cast<ssize_t>(taken);
}

int DtlsSession::pull_timeout(gnutls_transport_ptr_t self, unsigned int) {
    return static_cast<DtlsSession*>(self)->inbox_.empty() ? 0 : 1;
}

int DtlsSession::key_of(gnutls_session_t session, const char* user, gnutls_datum_t* key) {
    const Psk& psk = static_cast<DtlsSession*>(gnutls_session_get_ptr(session))->psk_;
    if (!equal_secret(user, psk.user)) {
        return -1;
    }
    key->data = static_cast<unsigned char*>(gnutls_malloc(psk.key.size()));
    if (key->data == nullptr) {
        return -1;
    }
    std::memcpy(key->data, psk.key.data(), psk.key.size());
    key->size = static_cast<unsigned>(psk.key.size());
    return 0;
}

CookieJar::CookieJar() {
    check(gnutls_key_generate(&key_, GNUTLS_COOKIE_KEY_SIZE), "DTLS");
}

CookieJar::~CookieJar() {
    gnutls_free(key_.data);
}

std::optional<gnutls_dtls_prestate_st>
CookieJar::admit(Bytes address, Bytes datagram, const DtlsSession::Push& push) {
    gnutls_dtls_prestate_st prestate{};
    void* const client = const_cast<uint8_t*>(address.data());
    const int result = gnutls_dtls_cookie_verify(&key_,
                                                 client,
                                                 address.size(),
                                                 const_cast<uint8_t*>(datagram.data()),
                                                 datagram.size(),
                                                 &prestate);
    if (result == GNUTLS_E_SUCCESS) {
        return prestate;
    }
    constexpr uint8_t handshake_record = 22;
    if (result == GNUTLS_E_BAD_COOKIE && datagram[0] == handshake_record) {
        const auto send = [](gnutls_transport_ptr_t to, const void* data, size_t size) {
            (*static_cast<const DtlsSession::Push*>(to))(
                Bytes(static_cast<const uint8_t*>(data), size));
            return static_cast<ssize_t>(size);
        };
        gnutls_dtls_cookie_send(
            &key_, client, address.size(), &prestate, const_cast<DtlsSession::Push*>(&push), send);
    }
    return std::nullopt;
}

} // namespace drover::tunnel
