// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/status.h"

#include <doctest/doctest.h>

using namespace drover;
using Json = nlohmann::json;

TEST_CASE("the table tells of served, replicating, receiving, stopped and failing disks") {
    const auto vms = Json::parse(R"([
      {"name": "vm1", "migration": {"to": "far", "phase": "copy"}, "disks": [
        {"name": "root", "served": true, "error": null, "record": null, "status":
          {"role": "owner", "generation": 3, "size": 1048576, "replica": null, "replication":
            {"phase": "bulk", "error": null, "dirty_bytes": 2048, "lag_bytes": 512, "drain_rate": 1024,
             "throttle_limit": 512}}},
        {"name": "failed", "served": true, "error": null, "record": null, "status":
          {"role": "owner", "generation": 3, "size": 1, "replica": null, "replication":
            {"phase": "failed", "error": "link lost"}}},
        {"name": "stopped", "served": false, "error": null, "status": null, "record":
          {"role": "fenced", "generation": 4}}]},
      {"name": "longer-name", "migration": null, "disks": [
        {"name": "in", "served": true, "error": null, "record": null, "status":
          {"role": "replica", "generation": 1, "size": 1048576, "replication": null, "replica":
            {"received_bytes": 4096, "consistent": true, "handed_over": false}}},
        {"name": "silent", "served": true, "error": "no answer in time", "record": null, "status": null},
        {"name": "new", "served": false, "error": null, "record": null, "status": null}]}
    ])");
    CHECK(
        status_table(vms) ==
        "VM           DISK     SERVED  ROLE     GENERATION  SIZE     REPLICATION\n"
        "vm1          root     yes     owner    3           1.0 MiB  bulk, 2.0 KiB dirty, lag 512 "
        "B, 1.0 KiB/s, writers slowed to 512 B/s\n"
        "vm1          failed   yes     owner    3           1 B      failed: link lost\n"
        "vm1          stopped  no      fenced   4           -        -\n"
        "longer-name  in       yes     replica  1           1.0 MiB  4.0 KiB received, consistent\n"
        "longer-name  silent   yes     -        -           -        no answer in time\n"
        "longer-name  new      no      -        -           -        -\n"
        "vm1: moving to far: copy\n");
}

TEST_CASE("the table tells of tunnels, also of those that do not answer") {
    const auto vms = Json::parse(R"([
      {"name": "vm1", "migration": null, "disks": [], "tunnels": [
        {"name": "vm1.nic0", "role": "home", "error": null, "status":
          {"role": "home", "phase": "diverted", "link": {"up": true}, "flows": {"tcp_open": 7}}},
        {"name": "vm1.nic1", "role": "away", "error": "nobody answers", "status": null},
        {"name": "vm1.nic2", "role": "away", "error": null, "status": {"role": 1, "link": []}}]}
    ])");
    const std::string table = status_table(vms);
    CHECK(table.find("vm1: tunnel vm1.nic0: home, diverted, link up, 7 connections\n") !=
          std::string::npos);
    CHECK(table.find("vm1: tunnel vm1.nic1: nobody answers\n") != std::string::npos);
    CHECK(table.find("vm1: tunnel vm1.nic2: ?, , link down, 0 connections\n") != std::string::npos);
}
