// SPDX-License-Identifier: GPL-2.0-or-later
// The switch: two ends, whose link is two queues here.
#include "common/error.h"
#include "test/unit/tunnel_frames.h"
#include "tunnel/core/end.h"

#include <deque>

#include <doctest/doctest.h>

using namespace drover;
using namespace drover::tunnel;
using namespace drover::tunnel::test;

namespace {

class Side : public Surroundings {
public:
    Side(Role role, EndOptions options = {}) {
        options.role = role;
        options.nic = vm_nic();
        end.emplace(options, *this, 0);
    }

    void to_device(Bytes frame, const Offload& offload) override {
        device.emplace_back(frame.begin(), frame.end());
        last_offload = offload;
    }
    void to_peer(Bytes record) override { sent.emplace_back(record.begin(), record.end()); }
    size_t room() const override { return up ? 1435 : 0; }
    bool link_up() const override { return up; }
    void tell_phase(Phase) override {}
    void switch_over(bool over) override {
        if (fails) {
            throw Error(ErrorKind::io, "no");
        }
        switched = over;
    }

    void frame(Frame bytes, uint64_t now, const Offload& offload = {}) {
        end->from_device(bytes, offload, now);
    }

    std::vector<Frame> device;
    Offload last_offload;
    std::deque<Frame> sent;
    bool up = true, switched = false, fails = false;
    std::optional<End> end;
};

struct Pair {
    Side home{Role::home}, away;
    uint64_t number = 0;

    explicit Pair(EndOptions of_home = {}, EndOptions of_away = {})
        : home(Role::home, of_home), away(Role::away, of_away) {}

    // All that was sent arrives, and each hears of the other's phase.
    void deliver(uint64_t now) {
        for (auto [from, to] : {std::pair(&home, &away), std::pair(&away, &home)}) {
            while (!from->sent.empty()) {
                const Frame record = from->sent.front();
                from->sent.pop_front();
                to->end->from_peer(*parse_record(record), {1, ++number}, now);
            }
        }
        tell(now);
    }
    void tick(uint64_t from, uint64_t to) {
        for (uint64_t now = from; now < to; ++now) {
            home.end->tick(now);
            away.end->tick(now);
        }
    }
    void tell(uint64_t now) {
        const Phase of_home = home.end->phase(), of_away = away.end->phase();
        away.end->peer_phase(of_home, now);
        home.end->peer_phase(of_away, now);
    }
};

Frame to_vm(uint16_t port, size_t data = 10) {
    return udp_frame(vm_mac, gateway_mac, "10.9.0.2", port, "10.1.0.10", 7, data);
}
Frame from_vm(uint16_t port) {
    return udp_frame(gateway_mac, vm_mac, "10.1.0.10", 7, "10.9.0.2", port);
}

} // namespace

TEST_CASE("nothing crosses before the divert, in either direction") {
    Pair pair;
    pair.home.frame(to_vm(1), 0);
    pair.home.frame(arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.10"), 0);
    CHECK(pair.home.sent.empty());
    CHECK(pair.home.device.empty());
    pair.away.frame(from_vm(1), 0);
    pair.deliver(0);
    CHECK(pair.home.device.empty());
    CHECK(pair.home.end->counters().not_switched == 1);
}

TEST_CASE("what is diverted is kept, and delivered at the resume in order, once") {
    Pair pair;
    pair.home.end->divert(0);
    CHECK(pair.home.switched);
    CHECK(pair.home.device.size() == 2); // it is announced
    std::vector<Frame> expected;
    for (uint16_t port = 1; port <= 300; ++port) {
        expected.push_back(to_vm(port, port % 50 == 0 ? 1470 : 10));
        pair.home.frame(expected.back(), port);
    }
    pair.deliver(400);
    CHECK(pair.away.device.empty());
    CHECK(pair.away.end->held().frames() == 300);
    pair.away.end->resume(500);
    CHECK(pair.away.switched);
    CHECK(pair.away.device.size() < 300); // not all at once
    // What comes meanwhile stays behind what was kept.
    expected.push_back(to_vm(999));
    pair.home.frame(expected.back(), 501);
    pair.deliver(501);
    for (uint64_t now = 501; now < 510; ++now) {
        pair.away.end->tick(now);
    }
    CHECK(pair.away.device == expected);
    pair.away.end->resume(600); // again
    CHECK(pair.away.device.size() == 301);

    pair.away.frame(from_vm(1), 700);
    pair.deliver(700);
    CHECK(pair.home.device.back() == from_vm(1));
    CHECK(pair.home.end->flows().count() == 301);
    CHECK(pair.home.end->flows().bytes_from_vm() == from_vm(1).size());
}

TEST_CASE("records that overtook each other are delivered in the order of sending") {
    Pair pair;
    pair.home.end->divert(0);
    for (uint16_t port = 1; port <= 3; ++port) {
        pair.home.frame(to_vm(port), 0);
    }
    for (const size_t i : {2, 0, 1}) {
        pair.away.end->from_peer(*parse_record(pair.home.sent[i]), {1, i}, 0);
    }
    pair.away.end->resume(0);
    CHECK(pair.away.device == std::vector<Frame>{to_vm(1), to_vm(2), to_vm(3)});
}

TEST_CASE("a rollback brings back what was kept, and the next attempt is as the first") {
    Pair pair;
    for (int attempt = 0; attempt < 2; ++attempt) {
        pair.home.device.clear();
        pair.home.end->divert(1000);
        pair.home.device.clear();
        pair.home.frame(to_vm(1), 1000);
        pair.home.frame(to_vm(2, 1470), 1000);
        pair.deliver(1100);
        pair.home.end->rollback(false, 1200);
        CHECK_FALSE(pair.home.switched);
        pair.home.frame(to_vm(3), 1200); // the VM itself gets this one
        pair.tell(1210);                 // away sends it back
        pair.tick(1211, 1215);
        pair.deliver(1220);
        CHECK(pair.home.device == std::vector<Frame>{to_vm(1), to_vm(2, 1470)});
        CHECK(pair.home.end->phase() == Phase::ready);
        pair.tell(1230);
        CHECK(pair.away.end->phase() == Phase::ready);
        CHECK(pair.away.end->held().frames() == 0);
    }
    // Frames for the VM that come from the peer at any other time are refused.
    const uint64_t before = pair.home.end->counters().refused_peer;
    const Frame frame = to_vm(9);
    pair.home.end->from_peer(WholeFrame{frame}, {1, 1}, 20'000);
    CHECK(pair.home.end->counters().refused_peer == before + 1);
}

TEST_CASE("what was kept is sent back bit by bit, and nobody resumes meanwhile") {
    Pair pair;
    pair.home.end->divert(0);
    for (uint16_t port = 1; port <= 300; ++port) {
        pair.home.frame(to_vm(port), 0);
    }
    pair.deliver(10);
    pair.home.device.clear();
    pair.home.end->rollback(false, 20);
    pair.tell(20);
    pair.away.end->tick(21);
    CHECK(!pair.away.sent.empty());
    CHECK(pair.away.sent.size() < 20);
    CHECK_THROWS_AS(pair.away.end->resume(22), Error);
    pair.tick(22, 100);
    CHECK(pair.away.end->phase() == Phase::returned);
    CHECK_THROWS_AS(pair.away.end->resume(100), Error);
    pair.deliver(100);
    CHECK(pair.home.device.size() == 300);
    pair.tell(110);
    CHECK(pair.away.end->phase() == Phase::ready);
    pair.away.end->resume(120);
}

TEST_CASE("no rollback once the VM runs there, nor while that is not known, unless it is certain") {
    Pair pair;
    pair.home.end->divert(0);
    pair.away.end->resume(0);
    pair.tell(0);
    CHECK_THROWS_AS(pair.home.end->rollback(false, 0), Error);
    CHECK(pair.home.end->phase() == Phase::diverted);
    pair.home.end->rollback(true, 0);
    CHECK(pair.home.end->phase() == Phase::returning);
    pair.tell(0);
    CHECK_FALSE(pair.away.switched);
    pair.tick(1, 5);
    pair.deliver(10);
    CHECK(pair.home.end->phase() == Phase::ready);

    EndOptions switched;
    switched.switched = true;
    Side restarted(Role::home, switched);
    CHECK_THROWS_AS(restarted.end->rollback(false, 100), Error);
    restarted.end->peer_phase(Phase::ready, 100);
    restarted.up = false;
    CHECK_THROWS_AS(restarted.end->rollback(false, 100), Error);
    restarted.end->rollback(true, 100);
    CHECK(restarted.end->phase() == Phase::returning);
    restarted.end->tick(100 + 10'000); // nothing comes
    CHECK(restarted.end->phase() == Phase::ready);
}

TEST_CASE("on its way home the VM's frames are kept from the hold on, and follow it") {
    Pair pair;
    pair.home.end->divert(0);
    pair.away.end->resume(0);
    pair.tell(0);
    pair.away.end->hold();
    CHECK(pair.away.end->phase() == Phase::ready);
    CHECK_FALSE(pair.away.switched);
    pair.home.frame(to_vm(1), 10);
    pair.deliver(20);
    CHECK(pair.away.device.empty());
    pair.home.device.clear();
    pair.home.end->rollback(false, 30);
    pair.tell(30);
    pair.tick(31, 35);
    pair.deliver(40);
    CHECK(pair.home.device == std::vector<Frame>{to_vm(1)});

    Pair stays; // its migration fails
    stays.home.end->divert(0);
    stays.away.end->resume(0);
    stays.away.end->hold();
    stays.home.frame(to_vm(1), 10);
    stays.deliver(20);
    stays.away.end->resume(30);
    CHECK(stays.away.device == std::vector<Frame>{to_vm(1)});
}

TEST_CASE("commands of the other end, and without a link") {
    Pair pair;
    CHECK_THROWS_AS(pair.away.end->divert(0), Error);
    CHECK_THROWS_AS(pair.home.end->resume(0), Error);
    CHECK_THROWS_AS(pair.away.end->rollback(true, 0), Error);
    CHECK_THROWS_AS(pair.home.end->hold(), Error);
    pair.home.up = false;
    CHECK_THROWS_AS(pair.home.end->divert(0), Error);
    pair.home.up = true;
    pair.home.fails = true;
    CHECK_THROWS_AS(pair.home.end->divert(0), Error);
    CHECK(pair.home.end->phase() == Phase::ready);
    pair.home.end->rollback(false, 0); // there is nothing to take back
}

TEST_CASE("a peer can't inject other addresses, at either end") {
    Pair pair;
    pair.home.end->divert(0);
    pair.away.end->resume(0);
    pair.home.device.clear();
    const Frame spoofed[] = {
        udp_frame(gateway_mac, vm_mac, "10.1.0.20", 7, "10.9.0.2", 1),
        udp_frame(gateway_mac, gateway_mac, "10.1.0.10", 7, "10.9.0.2", 1),
        arp_frame(Mac::broadcast(), 2, vm_mac, "10.1.0.1", {}, "10.1.0.20"),
        to_vm(1),
    };
    for (const Frame& frame : spoofed) {
        pair.home.end->from_peer(WholeFrame{frame}, {1, 1}, 10'000);
    }
    CHECK(pair.home.device.empty());
    CHECK(pair.home.end->counters().refused_peer == 4);
    for (const Frame& frame :
         {from_vm(1), udp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.2.0.10", 7)}) {
        pair.away.end->from_peer(WholeFrame{frame}, {1, 1}, 10'000);
    }
    CHECK(pair.away.device.empty());
    CHECK(pair.away.end->counters().refused_peer == 2);
}

TEST_CASE("the home end answers for the VM, also without a link") {
    Pair pair;
    pair.home.end->divert(0);
    pair.home.up = false;
    pair.home.device.clear();
    pair.home.frame(arp_frame(Mac::broadcast(), 1, gateway_mac, "10.1.0.1", {}, "10.1.0.10"), 0);
    REQUIRE(pair.home.device.size() == 1);
    CHECK(parse_frame(pair.home.device[0])->arp->operation == 2);
    pair.home.frame(to_vm(1), 0);
    CHECK(pair.home.end->counters().no_link == 1);
}

TEST_CASE("a SYN is told the size that crosses whole") {
    Pair pair;
    pair.home.end->divert(0);
    pair.home.frame(
        tcp_frame(
            vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 7, tcp_flag::syn, {2, 4, 0x05, 0xb4}),
        0);
    const Frame record = pair.home.sent.front();
    CHECK(get16(record.data() + 1 + ethernet_header + 20 + 22) == 1435 - 15 - 40);
    CHECK(pair.home.end->counters().clamped == 1);
}

TEST_CASE("a large TCP packet crosses in records that fit, and is delivered as one") {
    Pair pair;
    pair.home.end->divert(0);
    pair.home.device.clear();
    pair.away.end->resume(0);
    const Frame large =
        tcp_frame(vm_mac, gateway_mac, "10.9.0.2", 1, "10.1.0.10", 7, tcp_flag::ack, {}, 14'000);
    Offload offload;
    offload.kind = Offload::tcp_v4;
    offload.segment = 1460;
    pair.home.frame(large, 1, offload);
    CHECK(pair.home.sent.size() == 11); // of 1380 bytes each
    pair.home.frame(to_vm(5), 1);       // what comes behind it stays there
    for (const Frame& record : pair.home.sent) {
        CHECK(record.size() <= pair.home.room());
    }
    pair.deliver(2);
    pair.away.end->flush();
    REQUIRE(pair.away.device.size() == 2);
    CHECK(pair.away.device[0].size() == large.size());
    CHECK(pair.away.device[1] == to_vm(5));

    pair.home.frame(large, 3, offload);
    pair.deliver(3);
    CHECK(pair.away.device.size() == 2);
    pair.away.end->flush();
    REQUIRE(pair.away.device.size() == 3);
    CHECK(pair.away.last_offload.segment == 1380);
    complete_checksum(pair.away.device[2], pair.away.last_offload);
    CHECK(pair.away.device[2] == large);

    pair.home.frame(to_vm(6, 3000), 4, offload); // no TCP
    CHECK(pair.home.end->counters().refused_here == 1);
    pair.home.up = false;
    pair.home.frame(large, 5, offload);
    CHECK(pair.home.end->counters().no_link == 1);
}

TEST_CASE("it closes when it was told to, when the peer does, and when nothing uses it any more") {
    Pair pair;
    pair.home.end->close("told to", 0);
    pair.deliver(10);
    CHECK(pair.away.end->phase() == Phase::closing);
    pair.tell(20);
    CHECK_FALSE(pair.home.end->finished(20)); // so that the peer hears of it
    CHECK(pair.home.end->finished(1000));
    CHECK(pair.away.end->finished(1000));

    EndOptions options;
    options.keep.at_least_ms = 1000;
    Pair idle(options);
    idle.home.end->divert(0);
    idle.home.end->tick(5000);
    CHECK(idle.home.end->phase() == Phase::diverted); // the VM does not run there yet
    idle.away.end->resume(5000);
    idle.tell(5000);
    idle.home.frame(to_vm(1), 5000);
    idle.away.frame(from_vm(1), 5000);
    idle.deliver(5000);
    idle.home.end->tick(6000);
    CHECK(idle.home.end->phase() == Phase::diverted);
    idle.home.end->tick(5000 + 120'000);
    CHECK(idle.home.end->phase() == Phase::closing);

    Pair scanned(options); // nobody answers
    scanned.home.end->divert(0);
    scanned.away.end->resume(0);
    scanned.tell(0);
    scanned.home.frame(to_vm(1), 1000);
    scanned.home.end->tick(1001);
    CHECK(scanned.home.end->phase() == Phase::closing);

    Side restarted(Role::away, [] {
        EndOptions switched;
        switched.switched = true;
        return switched;
    }());
    CHECK(restarted.end->phase() == Phase::resumed);
}
