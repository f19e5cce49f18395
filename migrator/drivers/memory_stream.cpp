// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/memory_stream.h"

#include "common/secrets.h"

#include <algorithm>
#include <thread>

#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace drover {
namespace {

// As the disks' streams and QEMU's have it: keys of this one migration, with (EC)DHE.
constexpr const char* priorities = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:"
                                   "+AES-256-GCM:+CHACHA20-POLY1305:-KX-ALL:+ECDHE-PSK:+DHE-PSK";
constexpr unsigned handshake_ms = 20000;
constexpr unsigned dead_link_ms = 60000;
constexpr size_t record = 16384;

[[noreturn]] void fail(const std::string& what) {
    throw Error(ErrorKind::peer, "the link of the memory: " + what);
}

void check(ssize_t result, const char* what) {
    if (result < 0) {
        fail(fmt::format("{}: {}", what, gnutls_strerror(static_cast<int>(result))));
    }
}

void write_all(int fd, const char* data, size_t size) {
    while (size > 0) {
        const ssize_t written = ::write(fd, data, size);
        if (written < 0 && errno != EINTR) {
            fail(fmt::format("its reader: {}", std::strerror(errno)));
        }
        data += std::max<ssize_t>(written, 0);
        size -= static_cast<size_t>(std::max<ssize_t>(written, 0));
    }
}

struct Pipe {
    UniqueFd out, in;
    Pipe() {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) {
            throw_errno("pipe");
        }
        out.reset(ends[0]);
        in.reset(ends[1]);
    }
};

struct AddressesFree {
    void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};

void set_options(int fd) {
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    // A record that does not fill a packet would wait for the one before to be acknowledged.
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_link_ms, sizeof dead_link_ms);
}

} // namespace

struct MemoryStream::Session {
    UniqueFd socket;
    std::string user, key;
    gnutls_session_t tls = nullptr;
    gnutls_psk_client_credentials_t client = nullptr;
    gnutls_psk_server_credentials_t server = nullptr;

    Session() = default;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() {
        if (tls != nullptr) {
            gnutls_deinit(tls);
        }
        if (client != nullptr) {
            gnutls_psk_free_client_credentials(client);
        }
        if (server != nullptr) {
            gnutls_psk_free_server_credentials(server);
        }
    }

    gnutls_datum_t key_datum() {
        return {reinterpret_cast<unsigned char*>(key.data()), static_cast<unsigned>(key.size())};
    }
    void set_up(bool as_client) {
        check(gnutls_init(&tls, (as_client ? GNUTLS_CLIENT : GNUTLS_SERVER) | GNUTLS_NO_TICKETS),
              "TLS");
        check(gnutls_priority_set_direct(tls, priorities, nullptr), "TLS");
        if (as_client) {
            const gnutls_datum_t secret = key_datum();
            check(gnutls_psk_allocate_client_credentials(&client), "TLS");
            check(gnutls_psk_set_client_credentials(
                      client, user.c_str(), &secret, GNUTLS_PSK_KEY_RAW),
                  "TLS");
            check(gnutls_credentials_set(tls, GNUTLS_CRD_PSK, client), "TLS");
        } else {
            check(gnutls_psk_allocate_server_credentials(&server), "TLS");
            gnutls_psk_set_server_credentials_function(server, key_of);
            check(gnutls_credentials_set(tls, GNUTLS_CRD_PSK, server), "TLS");
        }
        gnutls_session_set_ptr(tls, this);
        gnutls_transport_set_int(tls, socket.get());
        gnutls_handshake_set_timeout(tls, handshake_ms);
    }

    static int key_of(gnutls_session_t session, const char* user, gnutls_datum_t* key) {
        auto* const self = static_cast<Session*>(gnutls_session_get_ptr(session));
        if (self->user != user) {
            return -1;
        }
        key->data = static_cast<unsigned char*>(gnutls_malloc(self->key.size()));
        if (key->data == nullptr) {
            return -1;
        }
        std::memcpy(key->data, self->key.data(), self->key.size());
        key->size = static_cast<unsigned>(self->key.size());
        return 0;
    }
};

MemoryStream::MemoryStream() = default;
MemoryStream::~MemoryStream() = default;

void MemoryStream::interrupt() {
    interrupted_ = true;
    ::shutdown(socket_, SHUT_RDWR); // also wakes accept()
}

// From now on interrupt() reaches what waits on it.
void MemoryStream::hold(UniqueFd socket) {
    socket_ = -1;
    session_ = std::make_unique<Session>();
    session_->socket = std::move(socket);
    socket_ = session_->socket.get();
    if (interrupted_) {
        fail("interrupted");
    }
}

void MemoryStream::shake_hands(UniqueFd socket, const MemoryLink& link, bool client) {
    set_options(socket.get());
    hold(std::move(socket));
    session_->user = link.psk_user;
    session_->key = from_hex(link.psk_key).value_or("");
    session_->set_up(client);
    int result = 0;
    do {
        result = gnutls_handshake(session_->tls);
    } while (result < 0 && gnutls_error_is_fatal(result) == 0);
    check(result, "TLS");
}

void MemoryStream::connect(const MemoryLink& link) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const std::string port = std::to_string(link.port);
    if (const int error = ::getaddrinfo(link.host.c_str(), port.c_str(), &hints, &found);
        error != 0) {
        fail(fmt::format("{}: {}", link.host, ::gai_strerror(error)));
    }
    const std::unique_ptr<addrinfo, AddressesFree> list(found);
    int reason = 0;
    for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
        UniqueFd socket(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (!socket) {
            reason = errno;
            continue;
        }
        const int fd = socket.get();
        // Also the connection's own attempts end then.
        set_options(fd);
        hold(std::move(socket));
        if (::connect(fd, each->ai_addr, each->ai_addrlen) == 0) {
            shake_hands(std::move(session_->socket), link, true);
            return;
        }
        reason = errno;
    }
    fail(fmt::format("{} port {}: {}", link.host, link.port, std::strerror(reason)));
}

void MemoryStream::accept(UniqueFd listener, const MemoryLink& link) {
    hold(std::move(listener));
    const UniqueFd waiting = std::move(session_->socket);
    for (;;) {
        socket_ = waiting.get();
        UniqueFd socket(::accept4(waiting.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (interrupted_) {
            fail("interrupted");
        }
        if (!socket) {
            if (errno == EINTR || errno == ECONNABORTED) {
                continue;
            }
            fail(std::strerror(errno));
        }
        try {
            shake_hands(std::move(socket), link, false);
            return;
        } catch (const Error&) {
            // Somebody who does not know the key: the one who does may still come.
            socket_ = waiting.get();
        }
    }
}

// The rate over a second, so that a burst is short.
void MemoryStream::pace(uint64_t just_sent) {
    const uint64_t rate = rate_;
    const Deadline now = Clock::now();
    if (rate == 0 || now - window_start_ > std::chrono::seconds(1)) {
        window_start_ = now;
        window_bytes_ = 0;
    }
    window_bytes_ += just_sent;
    if (rate != 0) {
        std::this_thread::sleep_until(
            window_start_ + milliseconds(window_bytes_ * 1000 / std::max(rate, just_sent)));
    }
}

// The pump on a thread of its own beside the work. Each lets go of its end of the pipe as soon as
// it is over, which ends the other one.
void MemoryStream::run(UniqueFd& pump_end,
                       const std::function<void()>& pump,
                       UniqueFd& work_end,
                       const std::function<void()>& work) {
    std::exception_ptr of_link, of_work;
    std::atomic<bool> link_failed{false};
    std::thread thread([&] {
        try {
            pump();
        } catch (...) {
            of_link = std::current_exception();
            link_failed = true;
        }
        pump_end.reset();
    });
    bool link_was_first = false;
    try {
        work();
    } catch (...) {
        of_work = std::current_exception();
        link_was_first = link_failed;
        interrupt(); // the other side must not take it for the whole
    }
    work_end.reset();
    thread.join();
    if (of_work && !link_was_first) {
        std::rethrow_exception(of_work);
    }
    if (of_link) {
        std::rethrow_exception(of_link);
    }
}

void MemoryStream::send(const std::function<void(int fd)>& writer) {
    Pipe pipe;
    run(
        pipe.out, [&] { send_from(pipe.out.get()); }, pipe.in, [&] { writer(pipe.in.get()); });
}

void MemoryStream::receive(const std::function<void(int fd)>& reader) {
    Pipe pipe;
    run(
        pipe.in, [&] { receive_into(pipe.in.get()); }, pipe.out, [&] { reader(pipe.out.get()); });
}

void MemoryStream::send_from(int fd) {
    std::vector<char> buffer(record);
    for (;;) {
        const ssize_t got = ::read(fd, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            fail(std::strerror(errno));
        }
        if (interrupted_) {
            fail("interrupted");
        }
        if (got == 0) {
            break;
        }
        for (size_t sent = 0; sent < static_cast<size_t>(got);) {
            const ssize_t some = gnutls_record_send(
                session_->tls, buffer.data() + sent, static_cast<size_t>(got) - sent);
            if (some < 0 && gnutls_error_is_fatal(static_cast<int>(some)) == 0) {
                continue;
            }
            check(some, "sending");
            sent += static_cast<size_t>(some);
            bytes_ += static_cast<uint64_t>(some);
        }
        pace(static_cast<uint64_t>(got));
    }
    check(gnutls_bye(session_->tls, GNUTLS_SHUT_WR), "the end");
}

void MemoryStream::receive_into(int fd) {
    std::vector<char> buffer(record);
    for (;;) {
        const ssize_t got = gnutls_record_recv(session_->tls, buffer.data(), buffer.size());
        if (got < 0 && gnutls_error_is_fatal(static_cast<int>(got)) == 0) {
            continue;
        }
        check(got, "receiving");
        if (got == 0) {
            return;
        }
        bytes_ += static_cast<uint64_t>(got);
        write_all(fd, buffer.data(), static_cast<size_t>(got));
    }
}

} // namespace drover
