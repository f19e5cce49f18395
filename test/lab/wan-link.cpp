// SPDX-License-Identifier: GPL-2.0-or-later
// A WAN cable between two network namespaces, in user space: kernels without
// netem have no other way to delay packets. Each end is a TAP device that
// lives as long as this process. One thread serves both directions.
//
//   wan-link run CONTROL-SOCKET NETNS/IFACE NETNS/IFACE [KEY=VALUE...]
//   wan-link ctl CONTROL-SOCKET [KEY=VALUE...]
//
// Keys: delay (ms, one way), rate (Mbit/s, 0: no limit), queue (ms of frames
// that may wait for the rate before they are dropped), loss (percent of frames),
// cut (1: the cable is cut, what is on its way is lost as well). "ab.loss=1"
// and "ba.loss=1" set one direction. `ctl` prints settings and counters as JSON.
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace {

using Clock = std::chrono::steady_clock;

// One request or answer on the control socket (SOCK_SEQPACKET) is one message.
constexpr size_t control_bytes_max = 4096;

[[noreturn]] void fail(const std::string& what, int error = errno) {
    std::fprintf(stderr, "wan-link: %s: %s\n", what.c_str(), std::strerror(error));
    std::exit(1);
}

Clock::duration milliseconds(double ms) {
    return std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double, std::milli>(ms));
}

struct Settings {
    double delay = 0;  // ms, one way
    double rate = 0;   // Mbit/s, 0: no limit
    double queue = 50; // ms
    double loss = 0;   // percent
    double cut = 0;    // not 0: nothing passes

    double* find(std::string_view key) {
        if (key == "delay") {
            return &delay;
        }
        if (key == "rate") {
            return &rate;
        }
        if (key == "queue") {
            return &queue;
        }
        if (key == "loss") {
            return &loss;
        }
        return key == "cut" ? &cut : nullptr;
    }
};

// One direction of the cable: frames wait on `line_` until they have arrived.
class Direction {
public:
    Settings settings;

    // Takes a frame in at `now`, or drops it.
    void send(std::span<const char> frame, Clock::time_point now) {
        if (settings.cut != 0 || percent_(random_) < settings.loss) {
            ++lost_;
            return;
        }
        Clock::time_point sent = now;
        if (settings.rate > 0) {
            const Clock::time_point start = std::max(now, transmitter_free_);
            if (start - now > milliseconds(settings.queue)) {
                ++overflowed_;
                return;
            }
            // Preamble, checksum and gap take 24 bytes of the wire's time.
            const double bits = 8.0 * static_cast<double>(frame.size() + 24);
            sent = transmitter_free_ = start + milliseconds(bits / (settings.rate * 1000));
        }
        // A shorter delay doesn't let later frames overtake.
        last_arrival_ = std::max(last_arrival_, sent + milliseconds(settings.delay));
        line_.push_back({last_arrival_, {frame.begin(), frame.end()}});
    }

    // Hands over what has arrived by `now`.
    void deliver(int tap, Clock::time_point now) {
        if (settings.cut != 0) {
            lost_ += line_.size();
            line_.clear();
        }
        for (; !line_.empty() && line_.front().arrival <= now; line_.pop_front()) {
            const std::vector<char>& data = line_.front().data;
            if (::write(tap, data.data(), data.size()) < 0) {
                ++lost_; // the far interface is down
                continue;
            }
            ++frames_;
            bytes_ += data.size();
        }
    }

    std::optional<Clock::time_point> next_arrival() const {
        return line_.empty() ? std::nullopt : std::optional(line_.front().arrival);
    }

    std::string describe() const {
        std::ostringstream out;
        out << "{\"delay\":" << settings.delay << ",\"rate\":" << settings.rate
            << ",\"queue\":" << settings.queue << ",\"loss\":" << settings.loss
            << ",\"cut\":" << settings.cut << ",\"frames\":" << frames_ << ",\"bytes\":" << bytes_
            << ",\"lost\":" << lost_ << ",\"overflowed\":" << overflowed_ << "}";
        return out.str();
    }

private:
    struct Frame {
        Clock::time_point arrival;
        std::vector<char> data;
    };

    std::deque<Frame> line_;
    Clock::time_point transmitter_free_{}, last_arrival_{};
    std::minstd_rand random_{std::random_device{}()};
    std::uniform_real_distribution<double> percent_{0, 100};
    uint64_t frames_ = 0, bytes_ = 0, lost_ = 0, overflowed_ = 0;
};

using Cable = std::array<Direction, 2>; // ab, ba

// Changes all of the settings or none; returns what is wrong, empty if nothing.
std::string apply(Cable& cable, std::span<const std::string> items) {
    std::array<Settings, 2> changed = {cable[0].settings, cable[1].settings};
    for (const std::string& item : items) {
        std::string_view key = std::string_view(item).substr(0, item.find('='));
        const bool only_ab = key.starts_with("ab.");
        const bool only_ba = key.starts_with("ba.");
        key.remove_prefix(only_ab || only_ba ? 3 : 0);
        char* end = nullptr;
        const size_t equals = item.find('=');
        const char* text = equals == std::string::npos ? "" : item.c_str() + equals + 1;
        const double value = std::strtod(text, &end);
        if (changed[0].find(key) == nullptr || end == text || *end != '\0' ||
            !std::isfinite(value) || value < 0) {
            return "'" + item + "': expected delay, rate, queue, loss or cut =NUMBER";
        }
        for (size_t i = only_ba ? 1 : 0; i < (only_ab ? 1U : 2U); ++i) {
            *changed[i].find(key) = value;
        }
    }
    cable[0].settings = changed[0];
    cable[1].settings = changed[1];
    return {};
}

// Makes the TAP device in its namespace. Leaves this thread in that namespace.
int open_tap(const std::string& where) {
    const size_t slash = where.find('/');
    if (slash == std::string::npos || where.size() - slash > IFNAMSIZ) {
        fail(where + " is not NETNS/IFACE", EINVAL);
    }
    const std::string path = "/run/netns/" + where.substr(0, slash);
    const int netns = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (netns < 0 || ::setns(netns, CLONE_NEWNET) < 0) {
        fail(path);
    }
    ::close(netns);
    const int tap = ::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap < 0) {
        fail("/dev/net/tun");
    }
    ifreq request{};
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    where.copy(request.ifr_name, IFNAMSIZ - 1, slash + 1);
    if (::ioctl(tap, TUNSETIFF, &request) < 0) {
        fail(where);
    }
    return tap;
}

sockaddr_un socket_address(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        fail(path, ENAMETOOLONG);
    }
    path.copy(address.sun_path, path.size());
    return address;
}

// The socket appears under its name when it answers: a starter may wait for that.
int listen_control(const std::string& path) {
    const std::string unready = path + ".new";
    const sockaddr_un address = socket_address(unready);
    ::unlink(unready.c_str());
    const int listener = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0 ||
        ::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0 ||
        ::listen(listener, 8) < 0 || ::rename(unready.c_str(), path.c_str()) < 0) {
        fail(path);
    }
    return listener;
}

// Answers the request that `peer` has sent.
void answer(Cable& cable, int peer) {
    std::string text(control_bytes_max, '\0');
    const ssize_t size = ::recv(peer, text.data(), text.size(), MSG_DONTWAIT);
    if (size <= 0) {
        return;
    }
    std::istringstream words(text.substr(0, static_cast<size_t>(size)));
    std::vector<std::string> items;
    for (std::string item; words >> item;) {
        items.push_back(item);
    }
    const std::string wrong = apply(cable, items);
    const std::string reply =
        wrong.empty() ? "{\"ab\":" + cable[0].describe() + ",\"ba\":" + cable[1].describe() + "}\n"
                      : wrong + "\n";
    ::send(peer, reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

// How long ppoll may sleep: until the first frame of either direction arrives.
std::optional<timespec> time_to_next(const Cable& cable) {
    std::optional<Clock::time_point> first;
    for (const Direction& direction : cable) {
        const auto arrival = direction.next_arrival();
        if (arrival && (!first || *arrival < *first)) {
            first = arrival;
        }
    }
    if (!first) {
        return std::nullopt;
    }
    const int64_t ns =
        std::max<int64_t>(0, std::chrono::nanoseconds(*first - Clock::now()).count());
    return timespec{ns / 1'000'000'000, ns % 1'000'000'000};
}

int run(std::span<const std::string> arguments) {
    Cable cable;
    const std::string wrong = apply(cable, arguments.subspan(3));
    if (!wrong.empty()) {
        fail(wrong, EINVAL);
    }
    const std::array<int, 2> taps = {open_tap(arguments[1]), open_tap(arguments[2])};
    ::prctl(PR_SET_TIMERSLACK, 1UL); // else each delay is up to 50 us late
    std::vector<pollfd> polled = {
        {taps[0], POLLIN, 0}, {taps[1], POLLIN, 0}, {listen_control(arguments[0]), POLLIN, 0}};
    constexpr size_t listener = 2, first_peer = 3;
    std::array<char, 65536> buffer;
    for (;;) {
        const std::optional<timespec> wait = time_to_next(cable);
        if (::ppoll(polled.data(), polled.size(), wait ? &*wait : nullptr, nullptr) < 0 &&
            errno != EINTR) {
            fail("poll");
        }
        const Clock::time_point now = Clock::now();
        for (size_t side = 0; side < 2; ++side) {
            // Bounded, so that a flood one way does not hold up the other.
            for (int i = 0; i < 64; ++i) {
                const ssize_t size = ::read(taps[side], buffer.data(), buffer.size());
                if (size <= 0) {
                    break;
                }
                cable[side].send({buffer.data(), static_cast<size_t>(size)}, now);
            }
        }
        for (size_t i = polled.size() - 1; i >= first_peer; --i) {
            if (polled[i].revents != 0) {
                answer(cable, polled[i].fd);
                ::close(polled[i].fd);
                polled.erase(polled.begin() + static_cast<std::ptrdiff_t>(i));
            }
        }
        if (polled[listener].revents != 0) {
            const int peer = ::accept4(polled[listener].fd, nullptr, nullptr, SOCK_CLOEXEC);
            if (peer >= 0) {
                polled.push_back({peer, POLLIN, 0});
            }
        }
        const Clock::time_point delivery = Clock::now();
        cable[0].deliver(taps[1], delivery);
        cable[1].deliver(taps[0], delivery);
    }
}

int control(std::span<const std::string> arguments) {
    const sockaddr_un address = socket_address(arguments[0]);
    const int peer = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (peer < 0 ||
        ::connect(peer, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
        fail(arguments[0]);
    }
    std::string request = " "; // an empty message would look like the end
    for (const std::string& item : arguments.subspan(1)) {
        request += item + " ";
    }
    std::string reply(control_bytes_max, '\0');
    ::send(peer, request.data(), request.size(), MSG_NOSIGNAL);
    const ssize_t size = ::recv(peer, reply.data(), reply.size(), 0);
    if (size <= 0) {
        fail(arguments[0], size == 0 ? ECONNRESET : errno);
    }
    const bool good = reply[0] == '{';
    std::fwrite(reply.data(), 1, static_cast<size_t>(size), good ? stdout : stderr);
    return good ? 0 : 1;
}

} // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    const std::span<const std::string> all(arguments);
    if (all.size() >= 4 && all[0] == "run") {
        return run(all.subspan(1));
    }
    if (all.size() >= 2 && all[0] == "ctl") {
        return control(all.subspan(1));
    }
    std::fprintf(stderr,
                 "usage: wan-link run CONTROL-SOCKET NETNS/IFACE NETNS/IFACE [KEY=VALUE...]\n"
                 "       wan-link ctl CONTROL-SOCKET [KEY=VALUE...]\n");
    return 2;
}
