// SPDX-License-Identifier: GPL-2.0-or-later
// The guest's client: the connections that it keeps, and what it sees of them.
#include "client.h"
#include "record.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace lab {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds probe_interval{10};
constexpr milliseconds report_interval{200};

int64_t to_ms(Clock::duration d) {
    return std::chrono::duration_cast<milliseconds>(d).count();
}

// Non-blocking; -1 if nobody answers within a second.
int try_connect(const std::string& host, uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
        fail(host + " is not an IPv4 address");
    }
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        fail_errno("socket");
    }
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    // Else the back-off of a probe that was lost would be counted as the guest's silence.
    ::setsockopt(fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &on, sizeof on);
    pollfd polled{fd, POLLOUT, 0};
    int error = 0;
    socklen_t size = sizeof error;
    if ((::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 ||
         errno == EINPROGRESS) &&
        ::poll(&polled, 1, 1000) == 1 &&
        ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0) {
        return fd;
    }
    ::close(fd);
    return -1;
}

// One of the watched connections.
class Connection {
public:
    Connection(std::string name, int fd) : name_(std::move(name)), fd_(fd) {}

    int fd() const { return fd_; }

    // What came, empty if nothing; notes the silence before it.
    std::string receive(json& errors) {
        std::string text(4096, '\0');
        const ssize_t size = ::recv(fd_, text.data(), text.size(), 0);
        if (size > 0) {
            end_silence();
            text.resize(static_cast<size_t>(size));
            return text;
        }
        if (size == 0 || (errno != EAGAIN && errno != EINTR)) {
            close(size == 0 ? "closed by the guest" : std::strerror(errno), errors);
        }
        return {};
    }

    void send(std::string_view text, json& errors) {
        if (::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
            close(std::strerror(errno), errors);
        }
    }

    // A silence that goes on counts as well.
    json report() const {
        const Clock::duration now = fd_ < 0 ? Clock::duration::zero() : Clock::now() - last_;
        const bool longer = now > silence_;
        return {{"messages", messages_},
                {"silence_ms", to_ms(longer ? now : silence_)},
                {"silence_at_ms", unix_ms(longer ? last_ : silence_at_)}};
    }

private:
    void end_silence() {
        const Clock::time_point now = Clock::now();
        if (now - last_ > silence_) {
            silence_ = now - last_;
            silence_at_ = last_;
        }
        last_ = now;
        ++messages_;
    }

    void close(const std::string& why, json& errors) {
        errors.push_back(name_ + ": " + why);
        end_silence();
        ::close(fd_);
        fd_ = -1;
    }

    static int64_t unix_ms(Clock::time_point time) {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        return std::chrono::duration_cast<milliseconds>(now).count() - to_ms(Clock::now() - time);
    }

    std::string name_;
    int fd_;
    uint64_t messages_ = 0;
    Clock::time_point last_ = Clock::now(), silence_at_ = last_;
    Clock::duration silence_{};
};

class Watch {
public:
    Watch(const std::string& host, std::string report_path) : report_path_(std::move(report_path)) {
        sigset_t signals;
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        ::sigprocmask(SIG_BLOCK, &signals, nullptr);
        signals_ = ::signalfd(-1, &signals, SFD_CLOEXEC);
        const int echo = connect(host, lab::echo_port);
        const int records = echo < 0 ? -1 : connect(host, lab::records_port);
        if (records < 0) {
            fail("told to end before the guest answered");
        }
        records_ = Connection("records", records);
        echo_ = Connection("echo", echo);
    }

    int run() {
        const Clock::time_point started = Clock::now();
        Clock::time_point probe_due = started, report_due = started;
        bool probe_is_out = false;
        for (bool ending = false; !ending;) {
            std::array<pollfd, 3> polled = {pollfd{signals_, POLLIN, 0},
                                            pollfd{records_.fd(), POLLIN, 0},
                                            pollfd{echo_.fd(), POLLIN, 0}};
            ::poll(polled.data(), polled.size(), static_cast<int>(probe_interval.count()) / 2);
            ending = polled[0].revents != 0;
            if (polled[1].revents != 0) {
                take_numbers(records_.receive(errors_));
            }
            if (polled[2].revents != 0 && !echo_.receive(errors_).empty()) {
                probe_is_out = false;
            }
            const Clock::time_point now = Clock::now();
            if (!probe_is_out && now >= probe_due && echo_.fd() >= 0) {
                echo_.send("x", errors_);
                probe_is_out = true;
                probe_due = now + probe_interval;
            }
            if (now >= report_due || ending) {
                write_report(now - started);
                report_due = now + report_interval;
            }
        }
        return errors_.empty() ? 0 : 1;
    }

private:
    // Keeps trying; -1 if told to end.
    int connect(const std::string& host, uint16_t port) const {
        pollfd polled{signals_, POLLIN, 0};
        for (;;) {
            const int fd = try_connect(host, port);
            if (fd >= 0 || ::poll(&polled, 1, 100) > 0) {
                return fd;
            }
        }
    }

    // Numbers come one a line, in order, and without a gap.
    void take_numbers(const std::string& text) {
        pending_ += text;
        for (size_t end; (end = pending_.find('\n')) != std::string::npos;) {
            const std::string line = pending_.substr(0, end);
            pending_.erase(0, end + 1);
            char* stop = nullptr;
            const uint64_t number = std::strtoull(line.c_str(), &stop, 10);
            if (stop == line.c_str() || *stop != '\0') {
                errors_.push_back("records: the guest said: " + line);
            } else if (acknowledged_ != 0 && number != acknowledged_ + 1) {
                errors_.push_back("records: " + line + " came after " +
                                  std::to_string(acknowledged_));
                acknowledged_ = std::max(acknowledged_, number);
            } else {
                acknowledged_ = number;
            }
        }
    }

    void write_report(Clock::duration elapsed) const {
        const json report = {{"acknowledged", acknowledged_},
                             {"records", records_.report()},
                             {"echo", echo_.report()},
                             {"errors", errors_},
                             {"seconds", static_cast<double>(to_ms(elapsed)) / 1000}};
        const std::string unready = report_path_ + ".new";
        std::ofstream out(unready);
        out << report.dump() << "\n";
        out.close();
        if (!out || ::rename(unready.c_str(), report_path_.c_str()) < 0) {
            fail_errno(report_path_);
        }
    }

    std::string report_path_;
    int signals_ = -1;
    Connection records_{"records", -1}, echo_{"echo", -1};
    uint64_t acknowledged_ = 0;
    std::string pending_;
    json errors_ = json::array();
};

} // namespace

int watch(const std::string& host, const std::string& report_path) {
    return Watch(host, report_path).run();
}

int tell(const std::string& host, const std::string& command) {
    const int fd = try_connect(host, lab::commands_port);
    if (fd < 0) {
        fail("the guest at " + host + " does not answer");
    }
    const std::string line = command + "\n";
    ::send(fd, line.data(), line.size(), MSG_NOSIGNAL);
    std::string answer;
    pollfd polled{fd, POLLIN, 0};
    while (answer.find('\n') == std::string::npos) {
        std::array<char, 256> buffer;
        if (::poll(&polled, 1, 10'000) != 1) {
            fail("the guest did not answer '" + command + "' within 10 s");
        }
        const ssize_t size = ::recv(fd, buffer.data(), buffer.size(), 0);
        if (size <= 0) {
            fail("the guest closed the connection after '" + command + "'");
        }
        answer.append(buffer.data(), static_cast<size_t>(size));
    }
    ::close(fd);
    std::fwrite(answer.data(), 1, answer.size(), stdout);
    return answer.starts_with("error") ? 1 : 0;
}

} // namespace lab
