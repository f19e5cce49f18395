#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Connections to a VM's old address go on, none reset and every byte right, while it moves to another
# site: IPv4 and IPv6, from elsewhere and from a neighbour there. What was put up goes away again.
# test: timeout=240 asan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/tunnel-functions.sh
source "$e2e_top/test/e2e/tunnel-functions.sh"

lab_up

echo "# the link comes up while the VM runs at home, and changes nothing for it"
tunnel_away
tunnel_home --keep forever
wait_for 20 linked
flows_start v4 10.1.0.10 "${TUNNEL_FLOWS:-1000}" 1000 2
flows_start v6 2001:db8:1::10 50 500
sleep 2
[[ $(status src .frames.to_peer) == 0 ]] || fail "frames cross before they are diverted"

# Packets that come to the tunnel larger than the MTU, and leave it so.
flows_from=third flows_start near-v4 10.1.0.10 5 500 2
flows_from=third flows_start near-v6 2001:db8:1::10 5 500 2

echo "# pause, divert, resume"
vm_plug none
tunnel src divert
sleep 0.5
[[ $(status dst .held.frames) -gt 0 ]] || fail "nothing was kept: $(status dst .)"
vm_plug dst
tunnel dst resume
sleep 5
flows_stop near-v4
flows_stop near-v6
pings client 10.1.0.10 || fail "a new ping to the old address"
pings third 10.1.0.10 || fail "a neighbour of the old segment"
pings third 2001:db8:1::10 || fail "a neighbour of the old segment, IPv6"
pings vm 10.1.0.20 || fail "the VM to its old neighbour"

echo "# the VM's and the neighbours' caches are lost"
at vm ip neigh flush all
at third ip neigh flush all
at gw1 ip neigh flush all
pings vm 10.1.0.20 || fail "the VM finds no old neighbour"
pings vm 2001:db8:1::20 || fail "the VM finds no old neighbour, IPv6"
pings third 10.1.0.10 || fail "a neighbour does not find the VM"
sleep 2
status dst '{link, flows, frames, drops, held}'
flows_stop v4
flows_stop v6
at gw2 nft list table inet site | grep -E 'counter' >gw2.counters
grep -q 'invalid counter packets 0 ' gw2.counters && ! grep -E 'saddr.*packets [1-9]' gw2.counters || fail "the old address was seen at the new site: $(cat gw2.counters)"

echo "# both ends take down what they put up"
tunnel src close
wait_for 10 eventually_gone "$home"
wait_for 10 eventually_gone "$away"
as_before
cat src.log dst.log
