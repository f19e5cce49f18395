#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# What can go wrong with a tunnel: another key, noise and forged datagrams, a cut link, an end that is
# killed, a rollback, a path that becomes narrow while ICMP is filtered. Connections go on, and what was
# put up goes away.
# test: timeout=400
# test: slow
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/tunnel-functions.sh
source "$e2e_top/test/e2e/tunnel-functions.sh"

lab_up
error_at_home() { [[ $(status src .link.error) == *"$1"* ]]; }

echo "# another key, and another NIC: no link, no divert; nothing is left"
tunnel_away
mv psk psk.right
printf 'vm:%064d\n' 1 >psk
tunnel_home
wait_for 30 error_at_home "the key may be wrong"
expect 1 tunnel src divert
expect_text err "the link is not up"
kill "$home"
wait_for 10 eventually_gone "$home"
mv psk.right psk
right_options=("${vm_options[@]}")
vm_options+=(--address 10.1.0.11/24)
tunnel_home
wait_for 30 error_at_home "another MAC, address or gateway"
expect 1 tunnel src divert
kill "$home"
wait_for 10 eventually_gone "$home"
kill "$away"
wait_for 10 eventually_gone "$away"
as_before
vm_options=("${right_options[@]}")

echo "# killed before the VM moves: cleanup puts back what was there"
tunnel_away
tunnel_home
wait_for 20 linked
expect 1 tunnel dst cleanup # it runs
kill -9 "$home" "$away"
wait_for 10 eventually_gone "$home"
wait_for 10 eventually_gone "$away"
tunnel src cleanup
tunnel dst cleanup
as_before
[[ $(tunnel dst cleanup) == "nothing was left" ]]

echo "# it closes when nothing uses it any more, and not before"
tunnel_away
tunnel_home --keep until-idle --keep-at-least 2s
wait_for 20 linked
flows_start few 10.1.0.10 5 200
tunnel src divert
vm_plug dst
tunnel dst resume
sleep 4
[[ $(status src .phase) == diverted ]] || fail "it closed while it was in use"
flows_stop few
wait_for 60 eventually_gone "$home"
wait_for 10 eventually_gone "$away"
expect_text src.log "no flow to an old address is left"
as_before
vm_plug src

echo "# a rollback: the VM goes on at home, and what was kept comes back"
at src bridge fdb replace $vm_mac dev vm0 master static # as some hypervisors do
tunnel_away --hold-age 20s
tunnel_home --keep forever
wait_for 20 linked
flows_start one 10.1.0.10 200 500 2
sleep 1
vm_plug none
tunnel src divert
sleep 0.5
kept=$(status dst .held.frames)
((kept > 0)) || fail "nothing was kept"
vm_plug src
tunnel src rollback
rolled_back() { [[ $(status src .phase) == ready && $(status dst .phase) == ready ]]; }
wait_for 10 rolled_back
[[ $(status dst .held.frames) == 0 && $(status src .frames.to_device) -ge $kept ]] || fail "not all came back: $(status src .)"
at src bridge fdb show br br0 >fdb
! grep -qi "$vm_mac.*sticky" fdb || fail "the VM's MAC is still pinned: $(cat fdb)"
grep -qi "$vm_mac dev vm0 .*static" fdb || fail "the bridge does not know any more what it knew: $(cat fdb)"
sleep 2

echo "# the move"
vm_plug none
tunnel src divert
vm_plug dst
tunnel dst resume
sleep 1
expect 1 tunnel src rollback
expect_text err "the VM runs at the other end"

echo "# back home, and there again"
for way in home there; do
    vm_plug none
    if [[ $way == home ]]; then
        tunnel dst hold
        vm_plug src
        tunnel src rollback --certain
        wait_for 10 rolled_back
    else
        tunnel src divert
        vm_plug dst
        tunnel dst resume
    fi
    sleep 1
done

echo "# noise, and what looks like DTLS, at the listening port"
at client "$lab_bin/flows" noise 10.2.0.2 4789 2000
sleep 2
linked || fail "the link did not survive noise"

echo "# the link is cut for 6 s, and comes back"
lab_link gw2 cut=1 >/dev/null
unlinked() { ! linked; }
wait_for 20 unlinked
sleep 2
lab_link gw2 cut=0 >/dev/null
wait_for 20 linked
sleep 2

echo "# the home end is killed and started again: it goes on where it was"
kill -9 "$home"
wait_for 10 eventually_gone "$home"
tunnel_home --keep forever
[[ $(status src .phase) == diverted ]] || fail "it forgot that it had diverted: $(status src .phase)"
wait_for 20 linked
sleep 3

echo "# the away end is killed: what the VM sends from its old address goes nowhere, until it is back"
kill -9 "$away"
wait_for 10 eventually_gone "$away"
sleep 1
tunnel_away --restart
[[ $(status dst .phase) == resumed ]] || fail "it forgot that the VM runs: $(status dst .phase)"
wait_for 30 linked
sleep 3

echo "# killed where it is to start again, and its device removed"
for harm in kill remove; do
    before=$(status dst .pid)
    if [[ $harm == kill ]]; then kill -9 "$before"; else net dst link delete "$(status dst .device)"; fi
    another() { [[ $(status dst .pid) =~ ^[0-9]+$ && $(status dst .pid) != "$before" ]]; }
    wait_for 20 another
    [[ $(status dst .phase) == resumed ]] || fail "it forgot that the VM runs: $(status dst .phase)"
    wait_for 30 linked
    sleep 2
done
at gw2 nft list table inet site | grep -E 'saddr.*packets [1-9]' && fail "the old address was seen at the new site"

echo "# the path becomes narrow, and no ICMP tells of it"
for router in gw1 gw2 wan; do
    at $router nft add table inet quiet
    at $router nft add chain inet quiet out '{ type filter hook output priority 0; }'
    at $router nft add rule inet quiet out icmp type destination-unreachable drop
    at $router nft add rule inet quiet out icmpv6 type packet-too-big drop
done
net gw2 link set wan0 mtu 1280
net wan link set gw2 mtu 1280
narrow() { [[ $(status src .link.datagram_size) -le 1252 && $(status dst .link.datagram_size) -le 1252 ]]; }
wait_for 40 narrow
sleep 4
before=$(status dst .flows.bytes_to_vm)
sleep 3
(($(status dst .flows.bytes_to_vm) - before > 1000000)) || fail "bulk data does not cross: $(status dst .)"
flows_start late 10.1.0.10 20 500 2 # with a clamped MSS
sleep 3
[[ $(status src .frames.clamped) -ge 20 ]] || fail "the MSS was not clamped"
flows_stop late
flows_stop one
status src '{link, drops}'

echo "# closed"
tunnel src close
wait_for 10 eventually_gone "$home"
wait_for 10 eventually_gone "$away"
as_before
