// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/announcer.h"

#include "common/error.h"
#include "common/privilege.h"
#include "tunnel/control_socket.h"
#include "tunnel/core/segment.h"
#include "tunnel/helper.h"
#include "tunnel/log.h"
#include "tunnel/network.h"
#include "tunnel/segment/packet_socket.h"
#include "tunnel/setup.h"

#include <chrono>
#include <thread>

#include <linux/capability.h>
#include <linux/neighbour.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover::tunnel {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// It stays root, to remove its socket; nothing is left of what root may do otherwise.
void give_up_rights(const std::string& folder) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    const __user_cap_data_struct none[2]{};
    if (::syscall(SYS_capset, &header, none) != 0) {
        throw_errno("capabilities");
    }
    confine_files({.read = {}, .write = {}, .names = {folder}});
    forbid_foreign_calls();
}

class Announcer {
public:
    explicit Announcer(const AnnouncerOptions& options)
        : options_(options), files_(TunnelFiles::of(options.name)),
          termination_(termination_signals()),
          socket_(options.bridge, PacketSocket::Hears::nothing),
          frames_(moved_announcements(options.nic)) {
        make_folder(files_.folder);
        control_.emplace(files_.announcer,
                         [this](const rpc::Request& request) { return call(request); });
        try {
            if (!options_.port.empty()) {
                Network().put_back({options_.port, NUD_REACHABLE}, options_.nic.mac);
            }
            give_up_rights(files_.folder);
        } catch (...) {
            ::unlink(files_.announcer.c_str());
            throw;
        }
    }
    ~Announcer() { ::unlink(files_.announcer.c_str()); }
    Announcer(const Announcer&) = delete;
    Announcer& operator=(const Announcer&) = delete;

    void run() {
        unsigned sent = 0;
        for (auto next = steady_clock::now(); !stopped_;) {
            if (steady_clock::now() < next) {
                poll_until(next);
                continue;
            }
            for (const Frame& frame : frames_) {
                socket_.send(frame);
            }
            const auto pause = announce_again_ms(++sent);
            if (!pause) {
                break;
            }
            next = steady_clock::now() + milliseconds(*pause);
        }
        log_line(options_.name,
                 fmt::format("{} was announced {} times at {}",
                             to_text(options_.nic.mac),
                             sent,
                             options_.bridge));
    }

private:
    void poll_until(steady_clock::time_point next) {
        std::vector<pollfd> polls{{termination_.get(), POLLIN, 0}};
        control_->add_polls(polls);
        const auto left = std::chrono::ceil<milliseconds>(next - steady_clock::now());
        if (::poll(polls.data(),
                   polls.size(),
                   static_cast<int>(std::max<int64_t>(left.count(), 0))) <= 0) {
            return;
        }
        stopped_ = stopped_ || polls[0].revents != 0;
        for (size_t i = 1; i < polls.size(); ++i) {
            if (polls[i].revents != 0) {
                control_->readable(polls[i].fd);
            }
        }
    }

    rpc::Json call(const rpc::Request& request) {
        if (request.method != "stop") {
            throw Error(ErrorKind::usage, fmt::format("no method '{}'", request.method));
        }
        rpc::only_params(request.params, {});
        stopped_ = true;
        return rpc::Json::object();
    }

    const AnnouncerOptions& options_;
    const TunnelFiles files_;
    const UniqueFd termination_;
    PacketSocket socket_;
    const std::vector<Frame> frames_;
    std::optional<ControlSocket> control_;
    bool stopped_ = false;
};

} // namespace

void run_announcer(const AnnouncerOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    if (::geteuid() != 0) {
        throw Error(ErrorKind::usage, "it must be started as root");
    }
    if (!options.port.empty()) {
        Network::index_of(options.port);
    }
    Announcer(options).run();
}

bool stop_announcer(const std::string& name) {
    const std::string control = TunnelFiles::of(name).announcer;
    constexpr milliseconds patience{5000}, moment{10};
    bool found = false;
    for (const auto deadline = steady_clock::now() + patience; steady_clock::now() < deadline;
         std::this_thread::sleep_for(moment)) {
        try {
            ask(control, "stop", rpc::Json::object());
            found = true;
        } catch (const Error& error) {
            if (error.sys_errno() == ENOENT || error.sys_errno() == ECONNREFUSED) {
                ::unlink(control.c_str()); // of one that was killed
                return found;
            }
            if (error.kind() != ErrorKind::peer && error.kind() != ErrorKind::io) {
                throw;
            }
        }
    }
    throw Error(ErrorKind::timeout, control + ": it does not end");
}

} // namespace drover::tunnel
