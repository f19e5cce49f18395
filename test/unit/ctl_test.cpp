// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/ctl.h"

#include <array>
#include <filesystem>
#include <thread>

#include <doctest/doctest.h>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

using namespace drover;
using namespace std::chrono_literals;
using rpc::Json;

namespace {

// A listener in a directory of its own that answers its first client's first request with
// `reply`, keeps the connection for as long as it lives, or closes it at once.
class Responder {
public:
    Responder(std::string reply, bool keep_open) {
        REQUIRE(::mkdtemp(directory_.data()) != nullptr);
        path = directory_ + "/ctl";
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, path.size());
        listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) ==
                0);
        REQUIRE(::listen(listener_.get(), 4) == 0);
        thread_ = std::thread([this, reply = std::move(reply), keep_open] {
            client_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            std::array<char, 4096> buffer;
            const ssize_t got = ::recv(client_.get(), buffer.data(), buffer.size(), 0);
            request.assign(buffer.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
            ::send(client_.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
            if (!keep_open) {
                client_.reset();
            }
        });
    }
    ~Responder() {
        thread_.join();
        std::filesystem::remove_all(directory_);
    }

    std::string path;
    std::string request; // after the reply has come

private:
    std::string directory_ =
        (std::filesystem::temp_directory_path() / "drover-ctl-XXXXXX").string();
    UniqueFd listener_, client_;
    std::thread thread_;
};

} // namespace

TEST_CASE("a call gives the result; notifications before it are dropped") {
    Responder responder("{\"jsonrpc\":\"2.0\",\"method\":\"status\",\"params\":{}}\n"
                        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"lsn\":7}}\n",
                        true);
    ControlClient client(responder.path);
    CHECK(client.peer_pid() == ::getpid());
    CHECK(client.call("quiesce", Json{{"hold", true}}, 10s) == Json{{"lsn", 7}});
    const auto request = std::get<rpc::Request>(rpc::parse(responder.request));
    CHECK(request.method == "quiesce");
    CHECK(request.params == Json{{"hold", true}});
}

TEST_CASE("the far side's error comes with its kind") {
    Responder responder(
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":6,\"message\":\"fenced\"}}\n", true);
    ControlClient client(responder.path);
    try {
        client.call("cancel", Json::object(), 10s);
        FAIL("no error came");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::refused);
        CHECK(std::string(error.what()) == "fenced");
    }
}

TEST_CASE("no answer in time, half an answer, nobody there") {
    SUBCASE("no answer") {
        Responder responder("", true);
        ControlClient client(responder.path);
        CHECK_THROWS_WITH_AS(client.call("status", Json::object(), 50ms),
                             doctest::Contains("no answer in time"),
                             Error);
    }
    SUBCASE("half an answer") {
        Responder responder("{\"jsonrpc\":\"2.0\",\"id\":1,", false);
        ControlClient client(responder.path);
        CHECK_THROWS_WITH_AS(client.call("status", Json::object(), 10s),
                             doctest::Contains("the connection ended before status was answered"),
                             Error);
    }
    SUBCASE("nobody") {
        CHECK_THROWS_WITH_AS(
            ControlClient("/nonexistent/ctl"), doctest::Contains("No such file"), Error);
        CHECK_THROWS_WITH_AS(ControlClient("/" + std::string(200, 'x')),
                             doctest::Contains("too long for a socket"),
                             Error);
    }
}

TEST_CASE("drover ctl takes a JSON object and nothing else as parameters") {
    for (const char* params : {"[1]", "{", "1", "\"x\""}) {
        CHECK_THROWS_WITH_AS(run_ctl("/nonexistent", "status", params),
                             doctest::Contains("a JSON object is expected"),
                             Error);
    }
    CHECK_THROWS_WITH_AS(run_ctl("/nonexistent", "status", ""),
                         doctest::Contains("is the disk being served?"),
                         Error);
}
