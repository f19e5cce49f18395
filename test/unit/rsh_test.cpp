// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/rsh.h"

#include <cstdlib>

#include <doctest/doctest.h>

using namespace drover;
using Words = std::vector<std::string>;

TEST_CASE("words are split as a shell does it, and nothing is expanded") {
    CHECK(split_words("") == Words{});
    CHECK(split_words("  ssh\t-p 22 ") == Words{"ssh", "-p", "22"});
    CHECK(split_words("a'b c'd \"e f\" ''") == Words{"ab cd", "e f", ""});
    CHECK(split_words(R"(a\ b "c\"d\\" '\x' "\y" $HOME `id` ;*)") ==
          Words{"a b", "c\"d\\", "\\x", "\\y", "$HOME", "`id`", ";*"});
    CHECK_THROWS_AS(split_words("ssh 'x"), Error);
    CHECK_THROWS_AS(split_words("\""), Error);
}

TEST_CASE("the agent's command: HOST behind the words, or where {host} is") {
    ::unsetenv("DROVER_REMOTE");
    CHECK(agent_command("ssh -p 2", "root@b") ==
          Words{"ssh", "-p", "2", "root@b", "drover", "agent", "--stdio"});
    CHECK(agent_command("kubectl exec -i {host} --", "pod-1") ==
          Words{"kubectl", "exec", "-i", "pod-1", "--", "drover", "agent", "--stdio"});
    CHECK(agent_command("x {host}{host}", "{host}") ==
          Words{"x", "{host}{host}", "drover", "agent", "--stdio"});
    ::setenv("DROVER_REMOTE", "sudo /opt/drover", 1);
    CHECK(agent_command("ssh", "b") ==
          Words{"ssh", "b", "sudo", "/opt/drover", "agent", "--stdio"});
    ::unsetenv("DROVER_REMOTE");
    CHECK_THROWS_AS(agent_command("ssh", "-oProxyCommand=x"), Error);
    CHECK_THROWS_AS(agent_command(" ", "b"), Error);
}

TEST_CASE("data links dial the host without its user") {
    PeerOptions peer;
    peer.host = "root@10.0.0.1";
    CHECK(data_address(peer) == "10.0.0.1");
    peer.host = "site-b";
    CHECK(data_address(peer) == "site-b");
    peer.data_address = "192.0.2.1";
    CHECK(data_address(peer) == "192.0.2.1");
}
