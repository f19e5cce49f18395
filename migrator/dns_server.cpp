// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_server.h"

#include "common/unique_fd.h"

#include <algorithm>
#include <array>
#include <ctime>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

namespace drover {
namespace {

// Of one question or update, and of all that are asked one after another.
constexpr milliseconds exchange_patience{5000}, whole_patience{30000};
// RFC 1035, RFC 2136
constexpr uint16_t no_error = 0, no_name = 3, refused = 5, name_exists = 6, records_exist = 7,
                   no_records = 8, not_authoritative = 9;

sockaddr_storage socket_address(const std::string& address, uint16_t port, socklen_t& size) {
    sockaddr_storage storage{};
    auto* const v4 = reinterpret_cast<sockaddr_in*>(&storage);
    auto* const v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    if (::inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        size = sizeof *v4;
    } else if (::inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        size = sizeof *v6;
    } else {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no address", address));
    }
    return storage;
}

// One message there, one back (RFC 1035, 4.2.2).
class Exchange {
public:
    Exchange(const std::string& address, uint16_t port, Deadline deadline)
        : deadline_(deadline), socket_(connected(address, port)) {}

    void send(std::string_view message) {
        std::string framed{static_cast<char>(message.size() >> 8),
                           static_cast<char>(message.size() & 0xff)};
        framed += message;
        std::string_view left = framed;
        while (!left.empty()) {
            wait(POLLOUT);
            const ssize_t sent = ::send(socket_.get(), left.data(), left.size(), MSG_NOSIGNAL);
            if (sent < 0 && !is_passing()) {
                fail(errno);
            }
            left.remove_prefix(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
        }
    }

    std::string receive() {
        const std::string length = read(2);
        const size_t size =
            static_cast<unsigned char>(length[0]) << 8 | static_cast<unsigned char>(length[1]);
        if (size > longest_dns_answer) {
            throw Error(ErrorKind::peer, fmt::format("its answer has {} bytes", size));
        }
        return read(size);
    }

private:
    UniqueFd connected(const std::string& address, uint16_t port) {
        socklen_t size = 0;
        const sockaddr_storage to = socket_address(address, port, size);
        UniqueFd made(::socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        if (!made) {
            fail(errno);
        }
        if (::connect(made.get(), reinterpret_cast<const sockaddr*>(&to), size) == 0) {
            return made;
        }
        if (errno != EINPROGRESS) {
            fail(errno);
        }
        wait(made.get(), POLLOUT);
        int error = 0;
        socklen_t length = sizeof error;
        if (::getsockopt(made.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0) {
            fail(error != 0 ? error : errno);
        }
        return made;
    }

    std::string read(size_t size) {
        std::string bytes(size, '\0');
        size_t have = 0;
        while (have < size) {
            wait(POLLIN);
            const ssize_t got = ::recv(socket_.get(), bytes.data() + have, size - have, 0);
            if (got == 0) {
                throw Error(ErrorKind::peer, "it closes the connection and does not answer");
            }
            if (got < 0 && !is_passing()) {
                fail(errno);
            }
            have += static_cast<size_t>(std::max<ssize_t>(got, 0));
        }
        return bytes;
    }

    static bool is_passing() { return errno == EINTR || errno == EAGAIN; }
    [[noreturn]] static void fail(int error) {
        throw Error(ErrorKind::peer,
                    fmt::format("it can't be asked (TCP): {}", std::strerror(error)),
                    error);
    }

    void wait(short events) const { wait(socket_.get(), events); }
    void wait(int fd, short events) const {
        for (;;) {
            const auto left =
                std::chrono::duration_cast<milliseconds>(deadline_ - Clock::now()).count();
            pollfd one{fd, events, 0};
            if (left <= 0) {
                throw Error(ErrorKind::timeout, "it does not answer (TCP)");
            }
            if (::poll(&one, 1, static_cast<int>(left) + 1) > 0) {
                return;
            }
        }
    }

    const Deadline deadline_;
    const UniqueFd socket_;
};

std::string server_text(const std::string& address, uint16_t port) {
    const bool is_v6 = address.find(':') != std::string::npos;
    return port == dns_port ? address
           : is_v6          ? fmt::format("[{}]:{}", address, port)
                            : fmt::format("{}:{}", address, port);
}

} // namespace

DnsServer::DnsServer(const DnsSpec& spec)
    : address_(spec.server), port_(spec.port), text_(server_text(spec.server, spec.port)),
      key_(load_dns_key(spec.key_file)), deadline_(Clock::now() + whole_patience) {}

DnsAnswer DnsServer::call(const DnsRequest& request) {
    try {
        Exchange exchange(address_, port_, std::min(deadline_, Clock::now() + exchange_patience));
        exchange.send(request.bytes);
        return read_dns_answer(request, exchange.receive(), key_, std::time(nullptr));
    } catch (const Error& error) {
        throw Error(error.kind(), fmt::format("DNS server {}: {}", text_, error.what()));
    }
}

void DnsServer::refuse(const std::string& what, uint16_t code) const {
    throw Error(ErrorKind::refused,
                fmt::format("DNS server {}: {}: {}", text_, what, dns_code_name(code)));
}

DnsRecords DnsServer::look_up(const std::string& name, DnsType type) {
    const DnsAnswer answer = call(dns_question(name, type, key_));
    const std::string what = fmt::format("{} {}", name, type_name(type));
    if (answer.code != no_error && answer.code != no_name) {
        refuse(what, answer.code);
    }
    if (!answer.authoritative) {
        refuse(fmt::format("{}: it is not authoritative for it", what), answer.code);
    }
    if (answer.is_alias) {
        refuse(fmt::format("{}: it is an alias (CNAME)", what), answer.code);
    }
    return answer.records;
}

std::optional<std::string> DnsServer::zone_of(const std::string& name) {
    const DnsAnswer answer = call(dns_question(name, DnsType::soa, key_));
    const bool found = answer.code == no_error || answer.code == no_name;
    if (!found && answer.code != refused && answer.code != not_authoritative) {
        refuse(fmt::format("the zone of {}", name), answer.code);
    }
    if (!found || !answer.authoritative || answer.zone.empty()) {
        return std::nullopt;
    }
    return answer.zone;
}

bool DnsServer::update(const std::string& zone, const std::vector<DnsUpdate>& updates) {
    const DnsAnswer answer = call(dns_update(zone, updates, key_));
    switch (answer.code) {
    case no_error:
        return true;
    case no_name:
    case name_exists:
    case records_exist:
    case no_records:
        return false;
    default:
        refuse(fmt::format("zone {}: it does not let this key update {} {}",
                           zone,
                           updates.front().to.name,
                           type_name(updates.front().to.type)),
               answer.code);
    }
}

} // namespace drover
