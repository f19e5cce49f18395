#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A VM moves within a segment that both sites have, and says nothing itself: its neighbours and the switches find it when
# it is announced, for IPv4 and IPv6.
# test: timeout=120
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/tunnel-functions.sh
source "$e2e_top/test/e2e/tunnel-functions.sh"

lab_up
cable src stretch dst stretch
for host in src dst; do net $host link set stretch master br0 up; done
announce_options=(--bridge br0 --mac "$vm_mac" --address 10.1.0.10/24 --address 2001:db8:1::10/60)
control=$tmp/run-dst/vm/announce.ctl
ping_once() { at third busybox ping -q -c 1 -W 1 "$1" >/dev/null; }
lladdr() { net third neigh show "$1" | grep -o 'lladdr [0-9a-f:]*'; }
is_at() { [[ $(lladdr "$1") == "lladdr $vm_mac" ]]; }

pings third 10.1.0.10
pings third 2001:db8:1::10

echo "# it moves, and nobody knows"
vm_plug dst
! ping_once 10.1.0.10 || fail "the switches know without being told: this test shows nothing"
for ip in 10.1.0.10 2001:db8:1::10; do net third neigh replace $ip lladdr 02:00:00:00:00:99 dev eth0 nud stale; done

echo "# announced: at once, and again"
background_at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm "${announce_options[@]}" --port vm0 2>>dst.log
announcer=$pid
wait_for 10 is_at 10.1.0.10
wait_for 10 is_at 2001:db8:1::10
wait_for 10 ping_once 10.1.0.10
wait_for 10 ping_once 2001:db8:1::10
net third neigh replace 10.1.0.10 lladdr 02:00:00:00:00:99 dev eth0 nud stale
wait_for 30 is_at 10.1.0.10
[[ $(grep -E '^CapEff' /proc/"$announcer"/status) =~ 0000000000000000 ]] || fail "it has kept rights: $(cat /proc/"$announcer"/status)"

echo "# one at a time, and told to stop"
expect 1 at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm "${announce_options[@]}"
[[ $(at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm --stop) == stopped ]]
wait_for 5 eventually_gone "$announcer"
[[ ! -e $control ]] || fail "its socket is left"
[[ $(at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm --stop) == "none was there" ]]

echo "# killed, and signalled"
background_at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm "${announce_options[@]}" 2>>dst.log
wait_for 10 test -S "$control"
kill -9 "$pid"
wait_for 10 eventually_gone "$pid"
background_at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm "${announce_options[@]}" 2>>dst.log
announcer=$pid
sleep 0.5
kill "$announcer"
wait_for 10 eventually_gone "$announcer"
[[ ! -e $control ]] || fail "its socket is left"

echo "# what is wrong is said"
expect 2 at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm --bridge br0
expect_text err "--mac and --address are required"
expect 2 at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm --bridge br9 --mac $vm_mac --address 10.1.0.10/24
expect_text err "no network interface 'br9'"
expect 2 at dst env DROVER_RUN="$tmp/run-dst" "$tunnel_binary" announce vm --bridge br0 --mac nonsense --address 10.1.0.10/24
