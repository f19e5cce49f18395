// SPDX-License-Identifier: GPL-2.0-or-later
// A stream of memory arrives whole, or its end is an error.
#include "common/error.h"
#include "migrator/drivers/memory_stream.h"
#include "migrator/serve.h"

#include <thread>

#include <doctest/doctest.h>

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace drover;

namespace {

MemoryLink link_of(const Listener& listener) {
    MemoryLink link;
    link.host = "127.0.0.1";
    sockaddr_in address{};
    socklen_t length = sizeof address;
    ::getsockname(listener.fd.get(), reinterpret_cast<sockaddr*>(&address), &length);
    link.port = ntohs(address.sin_port);
    link.psk_user = "migration-memory";
    link.psk_key = std::string(64, 'a');
    return link;
}

// What has arrived, or the error in its place.
std::string receive(MemoryStream& stream, UniqueFd listener, const MemoryLink& link) {
    std::string got;
    try {
        stream.accept(std::move(listener), link);
        stream.receive([&](int fd) {
            char buffer[4096];
            for (ssize_t n; (n = ::read(fd, buffer, sizeof buffer)) > 0;) {
                got.append(buffer, static_cast<size_t>(n));
            }
        });
    } catch (const Error& error) {
        return error.what();
    }
    return got;
}

void write_all(int fd, std::string_view text) {
    while (!text.empty()) {
        const ssize_t n = ::write(fd, text.data(), text.size());
        REQUIRE(n > 0);
        text.remove_prefix(static_cast<size_t>(n));
    }
}

} // namespace

TEST_CASE("memory: all of it comes across, also past a peer that does not know the key") {
    Listener listener = listen_tcp("127.0.0.1", 0);
    const MemoryLink link = link_of(listener);
    const std::string sent(3000000, 'x');
    std::string got;
    MemoryStream here, there;
    std::thread receiver([&] { got = receive(there, std::move(listener.fd), link); });
    MemoryLink wrong = link;
    wrong.psk_key = std::string(64, 'b');
    MemoryStream stranger;
    CHECK_THROWS_AS(stranger.connect(wrong), Error);
    here.connect(link);
    here.send([&](int fd) { write_all(fd, sent); });
    receiver.join();
    CHECK(got == sent);
    CHECK(here.bytes() == sent.size());
}

TEST_CASE("memory: where its writer fails, the other end does not take it for the whole") {
    Listener listener = listen_tcp("127.0.0.1", 0);
    const MemoryLink link = link_of(listener);
    std::string got;
    MemoryStream here, there;
    std::thread receiver([&] { got = receive(there, std::move(listener.fd), link); });
    here.connect(link);
    const auto writer = [](int fd) {
        write_all(fd, "half");
        throw Error(ErrorKind::state, "the save failed");
    };
    CHECK_THROWS_WITH_AS(here.send(writer), "the save failed", Error);
    receiver.join();
    CHECK(got.starts_with("the link of the memory"));
}

TEST_CASE("memory: who waits for a peer can be interrupted") {
    Listener listener = listen_tcp("127.0.0.1", 0);
    const MemoryLink link = link_of(listener);
    std::string got;
    MemoryStream there;
    std::thread receiver([&] { got = receive(there, std::move(listener.fd), link); });
    there.interrupt();
    receiver.join();
    CHECK(got == "the link of the memory: interrupted");
}
