#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# mode = "auto" of a real guest's [network]: a tunnel where the sites have a segment each, none where they share it,
# nothing where that can't be told. In the shared segment the guest is announced when it has moved, there and back, and
# its client's connections go on.
# test: timeout=400
# test: slow
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"

there=(drover migrate vm dst --rsh "$LAB/at" --data-address 10.8.0.2)
back=(drover migrate vm src --rsh "$LAB/at" --data-address 10.8.0.1)
netns() { ip -n "$(lab_sites netns "$1")" "${@:2}"; }
mode() { sed -i "s/^mode = .*/mode = \"$1\"/" "$LAB/src/vm.d/vm.toml"; }
announcers() { ip netns pids "$(lab_sites netns "$1")" | xargs -r ps -o args= -p | grep -c 'drover-tunnel announce' || true; }
# The agent does not wait for it.
announces() { [[ $(announcers "$1") == 1 ]]; }
silent() { [[ $(announcers "$1") == 0 ]]; }

one_disk_guest_up

echo "# stretched: only where the other site allows it"
mode stretched
expect 1 at src "${there[@]}" --dry-run
expect_text err "has no [stretched]"
for site in src dst; do sed -i 's/^\[tunnel\]/[stretched]\n&/' "$LAB/$site/drover.toml"; done
at src "${there[@]}" --dry-run >/dev/null 2>&1
sed -i 's/^\[stretched\]/&\nnetworks = ["10.2.0.0\/16"]/' "$LAB/dst/drover.toml"
expect 1 at src "${there[@]}" --dry-run
expect_text err "stretched.networks"
sed -i '/^networks = /d' "$LAB/dst/drover.toml"

echo "# auto, a segment each: a tunnel, where it is configured"
mode auto
expect 0 at src "${there[@]}" --dry-run
expect_text err 'network.mode = "auto": a tunnel: neither site hears the other one'
sed -i '/^\[tunnel\]/,/^$/ s/^/#/' "$LAB/dst/drover.toml"
expect 1 at src "${there[@]}" --dry-run
expect_text err 'has no [tunnel] (network.mode = "auto" has chosen "tunnel"'
sed -i '/^#\[tunnel\]/,/^#$/ s/^#//' "$LAB/dst/drover.toml"

echo "# what can't be told is a tunnel, if there may be one"
sed -i 's/^\[stretched\]/#&/' "$LAB/dst/drover.toml"
expect 0 at src "${there[@]}" --dry-run
expect_text err "a tunnel: whether both sites are one segment can't be told"
sed -i 's/^#\[stretched\]/[stretched]/' "$LAB/dst/drover.toml"

echo "# one segment"
ip link add stretch netns "$(lab_sites netns src)" type veth peer name stretch netns "$(lab_sites netns dst)"
for site in src dst; do netns $site link set stretch master br0 up; done
expect 0 at src "${there[@]}" --dry-run
expect_text err 'network.mode = "auto": stretched: the VM answers here'

echo "# heard in one direction only: neither"
netns_at() { ip netns exec "$(lab_sites netns "$1")" "${@:2}"; }
netns_at dst nft add table netdev lab
netns_at dst nft 'add chain netdev lab in { type filter hook ingress device "stretch" priority 0; }'
netns_at dst nft add rule netdev lab in ether saddr 02:00:00:00:00:10 drop
expect 2 at src "${there[@]}" --dry-run
expect_text err "the VM does not answer at the destination: set network.mode"
netns_at dst nft delete table netdev lab

echo "# it moves, and is announced there"
at src "${there[@]}" >out 2>err || fail "status $?: $(cat out err)"
expect_text err 'network.mode = "auto": stretched'
[[ -z $(find "$LAB/src/run" -path '*.nic*') ]] || fail "there is a tunnel"
wait_for 10 announces dst
lab_wait_acknowledged 50

echo "# and ends being announced when it moves back"
rm -f "$LAB"/*/console.log "$LAB/src/monitor"
at dst "${back[@]}" >out 2>err || fail "status $?: $(cat out err)"
silent dst || fail "it is announced where it is not any more"
[[ -z $(find "$LAB/dst/run" -path '*.nic*') ]] || fail "files are left: $(find "$LAB/dst/run" -path '*.nic*')"
lab_wait_acknowledged 50
lab_stop_client
jq -r '"# longest silence: \(.records.silence_ms) ms"' "$LAB/client.json"
acknowledged=$(lab_acknowledged)
lab_poweroff src
lab_check_records "$(lab_image src vm root)" "$acknowledged" >/dev/null
