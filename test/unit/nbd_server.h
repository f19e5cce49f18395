// SPDX-License-Identifier: GPL-2.0-or-later
// Real NBD servers for unit tests.
#pragma once

#include "common/process.h"
#include "common/unique_fd.h"
#include "nbd-proxy/nbd_client.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace drover {

// A TCP socket that listens on a free port of 127.0.0.1.
struct Listener {
    Listener() : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof address;
        auto* const generic = reinterpret_cast<sockaddr*>(&address);
        REQUIRE(bind(fd.get(), generic, length) == 0);
        REQUIRE(listen(fd.get(), 8) == 0);
        REQUIRE(getsockname(fd.get(), generic, &length) == 0);
        port = ntohs(address.sin_port);
    }
    UniqueFd fd;
    uint16_t port = 0;
};

// A server process on a unix socket in a directory of its own, for as long as this lives.
class Server {
public:
    Server() {
        directory_ = "/tmp/drover-nbd-XXXXXX";
        REQUIRE(mkdtemp(directory_.data()) != nullptr);
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server() {
        stop(SIGKILL);
        std::filesystem::remove_all(directory_);
    }

    // nbdkit ARGUMENTS on socket().
    Server& nbdkit(std::vector<std::string> arguments) {
        const std::vector<std::string> first{"nbdkit", "--foreground", "--unix", socket()};
        arguments.insert(arguments.begin(), first.begin(), first.end());
        return start(arguments);
    }
    // nbdkit ARGUMENTS on a TCP port of 127.0.0.1, which is returned.
    uint16_t nbdkit_tcp(std::vector<std::string> arguments) {
        const std::vector<std::string> first{"nbdkit", "--foreground"};
        arguments.insert(arguments.begin(), first.begin(), first.end());
        const Listener listener;
        SpawnOptions options;
        options.argv = arguments;
        options.log_file = path("log");
        options.fds = {{listener.fd.get(), 3}};
        options.listen_fds = 1;
        child_ = spawn(options);
        running_ = true;
        return listener.port;
    }
    Server& qemu_nbd(const std::string& format, const std::string& size) {
        const std::string image = path("disk");
        REQUIRE(run_command({"qemu-img", "create", "-q", "-f", format, image, size},
                            {},
                            std::chrono::seconds(10))
                    .status.success());
        return start({"qemu-nbd",
                      "--persistent",
                      "--shared=4",
                      "--discard=unmap",
                      "--format=" + format,
                      "--socket=" + socket(),
                      image});
    }
    // It keeps its connections, and says nothing any more.
    void pause() { child_.signal(SIGSTOP); }
    void stop(int signal) {
        if (child_.pid() != 0 && running_) {
            child_.signal(signal);
            child_.wait();
            running_ = false;
        }
    }
    // From now on who connects to `other` comes here.
    void take_over(const Server& other) const {
        std::filesystem::rename(socket(), other.socket());
    }

    std::string path(const std::string& name) const { return directory_ + "/" + name; }
    std::string socket() const { return path("nbd.sock"); }
    std::string uri() const { return "nbd+unix:///?socket=" + socket(); }
    NbdClientOptions options() const {
        NbdClientOptions options;
        options.socket = socket();
        return options;
    }

private:
    Server& start(const std::vector<std::string>& argv) {
        SpawnOptions options;
        options.argv = argv;
        options.log_file = path("log");
        std::filesystem::remove(socket());
        child_ = spawn(options);
        running_ = true;
        while (!listens()) {
            REQUIRE_FALSE(child_.wait(std::chrono::milliseconds(10)));
        }
        return *this;
    }

    // The file is there a little before anybody can connect.
    bool listens() const {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        socket().copy(address.sun_path, sizeof address.sun_path - 1);
        const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        return ::connect(
                   probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    }

    std::string directory_;
    Child child_;
    bool running_ = false;
};

} // namespace drover
