// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/helper.h"

#include "common/error.h"
#include "common/privilege.h"
#include "common/secrets.h"
#include "common/unix_socket.h"
#include "tunnel/core/address_filter.h"
#include "tunnel/core/rules.h"
#include "tunnel/log.h"
#include "tunnel/network.h"

#include <cstdlib>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/neighbour.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace drover::tunnel {
namespace {

constexpr char set_up_command = 'S', over_command = 'O', back_command = 'B', down_command = 'D';

void remove_file(const std::string& path) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
        throw_errno(path);
    }
}

void remove_files(const TunnelFiles& files) {
    remove_file(files.socket);
    remove_file(files.state);
}

void keep_only_net_admin() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    data[0].permitted = data[0].effective = 1U << CAP_NET_ADMIN;
    if (::syscall(SYS_capset, &header, data) != 0) {
        throw_errno("capabilities");
    }
}

// What the bridge knew of the VM. It learns that anew, if this can't be done.
void put_back(Network& network, const PutUp& put_up, const Mac& mac) noexcept {
    try {
        network.put_back({put_up.port, put_up.port_state}, mac);
    } catch (const std::exception& error) {
        log_line(put_up.tunnel, error.what());
    }
}

// Where the VM has left for good: only what somebody had set.
void put_back_at_end(Network& network, const PutUp& put_up, const Mac& mac) noexcept {
    if (put_up.switched && (put_up.port_state & (NUD_PERMANENT | NUD_NOARP)) != 0) {
        put_back(network, put_up, mac);
    }
}

class Worker {
public:
    explicit Worker(const HelperOptions& options)
        : files_(options.files), device_(options.device), mac_(options.mac), rules_(options.rules),
          put_up_(options.put_up) {}

    // False after the last one.
    bool obey(char command) {
        switch (command) {
        case set_up_command:
            set_up();
            return true;
        case over_command:
            turn(true);
            return true;
        case back_command:
            turn(false);
            return true;
        case down_command:
            take_down();
            return false;
        default:
            throw Error(ErrorKind::usage, "no such command");
        }
    }

    void confine() {
        keep_only_net_admin();
        // nft looks up names of protocols.
        confine_files(
            {.read = {"/etc", "/usr", "/lib", "/proc/sys/net"},
             .write = {files_.folder},
             .names = {files_.folder, std::filesystem::path(files_.folder).parent_path()}});
        forbid_foreign_calls();
    }

private:
    // Whole, whenever this process is killed; nothing that is put up outlives the machine, so
    // nothing waits for a disk.
    void record() {
        const std::string text = put_up_text(put_up_), temporary = files_.state + ".tmp";
        const UniqueFd fd(
            ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        if (!fd ||
            ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
            ::rename(temporary.c_str(), files_.state.c_str()) != 0) {
            throw_errno(files_.state);
        }
    }

    void set_up() {
        record();
        if (put_up_.role == Role::home) {
            network_.join_bridge(device_, put_up_.at);
            if (put_up_.switched) {
                network_.pin_mac(device_, mac_);
            }
        } else {
            network_.bring_up(device_, put_up_.at);
            network_.run_rules(rules_);
        }
    }

    void restore_record() noexcept {
        try {
            record();
        } catch (const std::exception&) {
            // The file then says what could not be done; a restart does it.
        }
    }

    // Recorded before it is done; where it can't be, nothing is changed.
    void turn(bool over) {
        const PutUp before = put_up_;
        put_up_.switched = over;
        try {
            if (over && put_up_.role == Role::home) {
                const Network::Place place = network_.place_of(put_up_.at, mac_);
                put_up_.port = place.port;
                put_up_.port_state = place.state;
            }
            record();
            if (put_up_.role == Role::home) {
                over ? network_.pin_mac(device_, mac_) : network_.unpin_mac(device_, mac_);
            }
        } catch (...) {
            put_up_ = before;
            restore_record();
            throw;
        }
        if (!over) {
            put_back(network_, put_up_, mac_);
        }
    }

    void take_down() {
        if (!put_up_.table.empty()) {
            network_.run_rules(remove_rules(put_up_.table));
        } // at home there is but the device, which went with its descriptor
        put_back_at_end(network_, put_up_, mac_);
        remove_files(files_);
    }

    const TunnelFiles files_;
    const std::string device_;
    const Mac mac_;
    const std::string rules_;
    PutUp put_up_;
    Network network_;
};

void serve(int socket, const HelperOptions& options) {
    Worker worker(options);
    worker.confine();
    for (;;) {
        char command = 0;
        if (::recv(socket, &command, 1, 0) <= 0) {
            return; // without a word: what is up stays, for a restart or `cleanup`
        }
        std::string answer; // "": done
        bool goes_on = true;
        try {
            goes_on = worker.obey(command);
        } catch (const std::exception& error) {
            answer = error.what();
        }
        if (answer.empty()) {
            answer.push_back('\0');
        }
        ::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL);
        if (!goes_on) {
            return;
        }
    }
}

} // namespace

TunnelFiles TunnelFiles::of(const std::string& tunnel) {
    if (tunnel.empty() || tunnel.front() == '.' || tunnel.find('/') != std::string::npos ||
        tunnel.size() > 80) {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no name for a tunnel", tunnel));
    }
    const char* const run = std::getenv("DROVER_RUN");
    const std::string folder =
        std::filesystem::absolute(run != nullptr ? run : "/run/drover") / tunnel;
    return {folder, folder + "/tunnel.state", folder + "/tunnel.ctl", folder + "/announce.ctl"};
}

Helper::Helper(const HelperOptions& options) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        throw_errno("socketpair");
    }
    socket_.reset(ends[0]);
    const UniqueFd theirs(ends[1]);
    const pid_t pid = ::fork();
    if (pid < 0) {
        throw_errno("fork");
    }
    if (pid != 0) {
        return;
    }
    // The TAP device must not live on in this process.
    int status = 1;
    try {
        const auto end = static_cast<unsigned>(theirs.get());
        ::close_range(3, end - 1, 0);
        ::close_range(end + 1, ~0U, 0);
        for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
            ::signal(number, SIG_IGN); // for the other one, which then says what to do
        }
        ::prctl(PR_SET_NAME, "tunnel-helper");
        serve(theirs.get(), options);
        status = 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover-tunnel: the helper: {}\n", error.what());
    }
    ::_exit(status);
}

void Helper::command(char which, const char* what) {
    char answer[4096];
    ssize_t size = ::send(socket_.get(), &which, 1, MSG_NOSIGNAL);
    if (size > 0) {
        do {
            size = ::recv(socket_.get(), answer, sizeof answer, 0);
        } while (size < 0 && errno == EINTR);
    }
    if (size <= 0) {
        throw Error(ErrorKind::peer, fmt::format("{}: the helper process has ended", what));
    }
    if (answer[0] != '\0') {
        throw Error(
            ErrorKind::io,
            fmt::format("{}: {}", what, std::string_view(answer, static_cast<size_t>(size))));
    }
}

void Helper::set_up() {
    command(set_up_command, "setting up");
}

void Helper::switch_over() {
    command(over_command, "switching over");
}

void Helper::switch_back() {
    command(back_command, "switching back");
}

void Helper::take_down() {
    command(down_command, "taking down");
}

bool clean_up(const TunnelFiles& files) {
    if (somebody_listens(files.socket)) {
        throw Error(
            ErrorKind::state,
            fmt::format("{}: the tunnel runs; `drover-tunnel close` ends it", files.socket));
    }
    const auto bytes = read_whole_file(files.state);
    if (!bytes) {
        remove_file(files.socket);
        return false;
    }
    const PutUp put_up = parse_put_up(*bytes, files.state);
    Network network;
    if (!put_up.table.empty()) {
        network.run_rules(remove_rules(put_up.table));
    }
    if (const auto mac = mac_in_identity(put_up.identity)) {
        put_back_at_end(network, put_up, *mac);
    }
    remove_files(files);
    return true;
}

} // namespace drover::tunnel
