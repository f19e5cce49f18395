// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/daemon.h"

#include "common/privilege.h"
#include "common/secrets.h"
#include "tunnel/control_socket.h"
#include "tunnel/core/rules.h"
#include "tunnel/helper.h"
#include "tunnel/log.h"
#include "tunnel/setup.h"
#include "tunnel/tap.h"

#include <chrono>

#include <fmt/format.h>

#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace drover::tunnel {
namespace {

constexpr size_t device_batch = 64, device_batch_bytes = 256 << 10;

uint64_t clock_ms() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
}

const char* phase_name(Phase phase) {
    switch (phase) {
    case Phase::ready:
        return "ready";
    case Phase::diverted:
        return "diverted";
    case Phase::resumed:
        return "resumed";
    case Phase::returning:
        return "returning";
    case Phase::returned:
        return "returned";
    case Phase::closing:
        return "closing";
    }
    return "?";
}

std::array<uint8_t, 16> digest_of(const Nic& nic) {
    const std::string digest = from_hex(sha256_hex(identity_of(nic))).value();
    std::array<uint8_t, 16> bytes{};
    std::copy_n(digest.begin(), bytes.size(), bytes.begin());
    return bytes;
}

struct User {
    uid_t uid;
    gid_t gid;
};

User find_user(const std::string& name) {
    const passwd* const found = ::getpwnam(name.c_str());
    if (found == nullptr || found->pw_uid == 0) {
        throw Error(ErrorKind::usage,
                    fmt::format("--user: '{}' is no user to run as, other than root", name));
    }
    return {found->pw_uid, found->pw_gid};
}

// For good, with all capabilities.
void become(const User& user) {
    if (::setgroups(0, nullptr) != 0 || ::setresgid(user.gid, user.gid, user.gid) != 0 ||
        ::setresuid(user.uid, user.uid, user.uid) != 0) {
        throw_errno("giving up root's rights");
    }
    keep_memory_private();
    // What libraries read on their own.
    confine_files({.read = {"/etc", "/usr", "/lib", "/dev/urandom"}, .write = {}, .names = {}});
    forbid_foreign_calls();
}

// What an earlier process of this tunnel left.
std::optional<PutUp> what_is_left(const TunnelFiles& files, const PutUp& now) {
    const auto bytes = read_whole_file(files.state);
    if (!bytes) {
        return std::nullopt;
    }
    PutUp before = parse_put_up(*bytes, files.state);
    if (before.role != now.role || before.identity != now.identity || before.at != now.at) {
        throw Error(ErrorKind::refused,
                    fmt::format("{}: another tunnel of this name was put up and not taken down: "
                                "`drover-tunnel cleanup {}` does that",
                                files.state,
                                now.tunnel));
    }
    return before;
}

iovec part_of(const void* at, size_t size) {
    return {const_cast<void*>(at), size};
}

class Daemon : private Surroundings {
public:
    explicit Daemon(DaemonOptions options)
        : options_(std::move(options)), files_(TunnelFiles::of(options_.name)),
          signals_(termination_signals()) {
        const User user = find_user(options_.user);
        require_root();
        PutUp put_up{options_.name,
                     options_.end.role,
                     identity_of(options_.end.nic),
                     options_.at,
                     options_.end.role == Role::away ? table_name(options_.name) : "",
                     false};
        make_folder(files_.folder);
        const std::optional<PutUp> left = what_is_left(files_, put_up);
        put_up = left.value_or(put_up);
        options_.end.switched = put_up.switched;
        control_.emplace(files_.socket,
                         [this](const rpc::Request& request) { return call(request); });
        tap_ = open_tap();
        helper_.emplace(
            HelperOptions{files_,
                          put_up,
                          tap_.name,
                          options_.end.nic.mac,
                          options_.end.role == Role::away
                              ? away_rules(put_up.table, options_.at, tap_.name, options_.end.nic)
                              : ""});
        try {
            helper_->set_up();
            become(user);
            const uint64_t now = clock_ms();
            end_.emplace(options_.end, static_cast<Surroundings&>(*this), now);
            options_.link.identity = digest_of(options_.end.nic);
            link_.emplace(options_.link,
                          Link::Events{[this](const Record& record, HoldQueue::Order order) {
                                           end_->from_peer(record, order, now_ms_);
                                       },
                                       [this](Phase phase) { end_->peer_phase(phase, now_ms_); }},
                          now);
            link_->set_phase(end_->phase(), now);
        } catch (...) {
            if (!left) { // else it is as it was left: for another try, or `cleanup`
                take_down();
            }
            throw;
        }
    }

    void run() {
        log(fmt::format("{} is up as {}", tap_.name, phase_name(end_->phase())));
        while (!stopped_) {
            now_ms_ = clock_ms();
            const uint64_t wait = std::min(link_->tick(now_ms_), end_->tick(now_ms_));
            watch_link();
            if (end_->finished(now_ms_)) {
                log("closed: " + end_->closing_reason());
                break;
            }
            end_->flush();
            link_->flush();
            poll_once(static_cast<int>(wait));
        }
        take_down();
    }

private:
    static void require_root() {
        if (::geteuid() != 0) {
            throw Error(ErrorKind::usage, "it must be started as root, whose rights it gives up");
        }
    }

    // Surroundings
    void to_device(Bytes frame, const Offload& offload) override {
        const iovec parts[] = {part_of(&offload, sizeof offload),
                               part_of(frame.data(), frame.size())};
        if (::writev(tap_.fd.get(), parts, std::size(parts)) < 0) {
            ++device_full_;
        }
    }
    void to_peer(Bytes record) override { link_->send(record); }
    size_t room() const override { return link_->room(); }
    bool link_up() const override { return link_->up(); }
    void tell_phase(Phase phase) override {
        log(phase_name(phase));
        link_->set_phase(phase, clock_ms());
    }
    void switch_over(bool over) override { over ? helper_->switch_over() : helper_->switch_back(); }

    void log(const std::string& text) const { log_line(options_.name, text); }

    void watch_link() {
        if (link_->up() != was_up_) {
            was_up_ = link_->up();
            const Link::Status status = link_->status();
            log(was_up_ ? fmt::format("the link to {} is up, {}", status.peer, status.cipher)
                        : "the link is down");
        }
        if (link_->error() != last_error_) {
            last_error_ = link_->error();
            if (!last_error_.empty()) {
                log(last_error_);
            }
        }
    }

    void poll_once(int wait_ms) {
        polls_.clear();
        polls_.push_back({signals_.get(), POLLIN, 0});
        polls_.push_back({helper_->fd(), POLLIN, 0});
        polls_.push_back({tap_.fd.get(), POLLIN, 0});
        link_->add_polls(polls_);
        const size_t links_end = polls_.size();
        control_->add_polls(polls_);
        if (::poll(polls_.data(), polls_.size(), wait_ms) <= 0) {
            return;
        }
        now_ms_ = clock_ms();
        if (polls_[0].revents != 0) {
            log("told to stop");
            stopped_ = true;
            return;
        }
        if (polls_[1].revents != 0) {
            throw Error(
                ErrorKind::peer,
                fmt::format("the helper process has ended: `drover-tunnel cleanup {}` takes "
                            "down what is up",
                            options_.name));
        }
        if ((polls_[2].revents & (POLLERR | POLLHUP)) != 0) {
            throw Error(ErrorKind::io, tap_.name + " was removed");
        }
        if (polls_[2].revents != 0) {
            read_device();
        }
        for (size_t i = 3; i < polls_.size(); ++i) {
            if (polls_[i].revents != 0) {
                i < links_end ? link_->readable(polls_[i].fd, now_ms_)
                              : control_->readable(polls_[i].fd);
            }
        }
    }

    void read_device() {
        Offload offload{};
        const iovec parts[] = {part_of(&offload, sizeof offload),
                               part_of(frame_.data(), frame_.size())};
        for (size_t i = 0, bytes = 0; i < device_batch && bytes < device_batch_bytes; ++i) {
            const ssize_t got = ::readv(tap_.fd.get(), parts, std::size(parts));
            if (got < static_cast<ssize_t>(sizeof offload)) {
                return;
            }
            const std::span frame(frame_.data(), static_cast<size_t>(got) - sizeof offload);
            end_->from_device(frame, offload, now_ms_);
            bytes += frame.size();
        }
    }

    void take_down() {
        tap_.fd.reset(); // with it the device and all that hangs on it
        control_.reset();
        helper_->take_down();
    }

    rpc::Json call(const rpc::Request& request) {
        const uint64_t now = clock_ms();
        if (request.method == "rollback") {
            rpc::only_params(request.params, {"certain"});
            end_->rollback(rpc::bool_param(request.params, "certain", false), now);
            return rpc::Json::object();
        }
        rpc::only_params(request.params, {});
        if (request.method == "status") {
            return status(now);
        }
        if (request.method == "divert") {
            end_->divert(now);
        } else if (request.method == "resume") {
            end_->resume(now);
        } else if (request.method == "hold") {
            end_->hold();
        } else if (request.method == "close") {
            end_->close("told to close", now);
        } else {
            throw Error(ErrorKind::usage, fmt::format("no method '{}'", request.method));
        }
        return rpc::Json::object();
    }

    rpc::Json status(uint64_t now) const {
        const auto optional = [](const auto& value) {
            return value ? rpc::Json(*value) : rpc::Json();
        };
        const Link::Status link = link_->status();
        const FlowTable& flows = end_->flows();
        const HoldQueue& held = end_->held();
        const EndCounters& counters = end_->counters();
        return {{"version", DROVER_VERSION},
                {"pid", ::getpid()},
                {"role", options_.end.role == Role::home ? "home" : "away"},
                {"device", tap_.name},
                {"phase", phase_name(end_->phase())},
                {"peer_phase", end_->peer() ? rpc::Json(phase_name(*end_->peer())) : rpc::Json()},
                {"link",
                 {{"up", link.up},
                  {"error", link.error.empty() ? rpc::Json() : rpc::Json(link.error)},
                  {"peer", link.peer},
                  {"cipher", link.cipher},
                  {"datagram_size", link.datagram_size},
                  {"round_trip_us", optional(link.round_trip_us)},
                  {"sessions", link.sessions},
                  {"discarded", link.discarded}}},
                {"flows",
                 {{"tcp_opening", flows.count(FlowClass::tcp_opening)},
                  {"tcp_open", flows.count(FlowClass::tcp_open)},
                  {"tcp_closing", flows.count(FlowClass::tcp_closing)},
                  {"udp", flows.count(FlowClass::udp)},
                  {"icmp", flows.count(FlowClass::icmp)},
                  {"other", flows.count(FlowClass::other)},
                  {"live", flows.live()},
                  {"oldest_ms", optional(flows.oldest_ms(now))},
                  {"idle_ms", optional(flows.idle_ms(now))},
                  {"bytes_to_vm", flows.bytes_to_vm()},
                  {"bytes_from_vm", flows.bytes_from_vm()},
                  {"evicted", flows.evicted()}}},
                {"held",
                 {{"frames", held.frames()},
                  {"bytes", held.bytes()},
                  {"dropped_full", held.dropped_full()},
                  {"dropped_old", held.dropped_old()}}},
                {"frames",
                 {{"to_peer", counters.to_peer},
                  {"to_device", counters.to_device},
                  {"answered", counters.answered},
                  {"clamped", counters.clamped}}},
                {"drops",
                 {{"refused_here", counters.refused_here},
                  {"refused_peer", counters.refused_peer},
                  {"no_link", counters.no_link},
                  {"not_switched", counters.not_switched},
                  {"unjoined", end_->joiner().dropped()},
                  {"device_full", device_full_}}}};
    }

    DaemonOptions options_;
    const TunnelFiles files_;
    UniqueFd signals_;
    std::optional<ControlSocket> control_;
    Tap tap_;
    std::optional<Helper> helper_;
    std::optional<Link> link_;
    std::optional<End> end_;
    std::vector<pollfd> polls_;
    std::vector<uint8_t> frame_ = std::vector<uint8_t>(largest_frame);
    uint64_t now_ms_ = 0;
    uint64_t device_full_ = 0;
    bool was_up_ = false, stopped_ = false;
    std::string last_error_;
};

} // namespace

void run_daemon(DaemonOptions options) {
    ::signal(SIGPIPE, SIG_IGN); // whoever reads what is logged may go
    Daemon(std::move(options)).run();
}

} // namespace drover::tunnel
