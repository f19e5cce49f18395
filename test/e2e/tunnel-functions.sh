# SPDX-License-Identifier: GPL-2.0-or-later
# A client, two sites and a VM that moves between them, as network namespaces; sourced by the tests of
# drover-tunnel behind functions.sh.
#
#    client 10.9.0.2 --- wan --WAN link-- gw1 10.1.0.1 --- src 10.1.0.2 (br0): vm0, uplink, third 10.1.0.20
#    2001:db8:9::2        '----WAN link-- gw2 10.2.0.1 --- dst 10.2.0.2 (br0): vm0, uplink
#
# The VM, 10.1.0.10 and 2001:db8:1::10, is a namespace whose cable leads into a switch of its own. From
# there a cable goes to vm0 of src and another one to vm0 of dst, and one of them is plugged in: so it
# moves with all its connections and neighbours, and sees no loss of its carrier, as a guest of QEMU.
# Each site lets only its own addresses out (BCP 38) and forwards nothing that conntrack takes for
# invalid; hosts check the way back (rp_filter=1) and do not forward.
#
#   at, background_at HOST COMMAND...   in its namespace
#   lab_up [KEY=VALUE...]     settings of both WAN links (test/lab/wan-link.cpp)
#   lab_link gw1|gw2 [KEY=VALUE...]
#   vm_plug src|dst|none      none: paused
#   tunnel_home, tunnel_away [OPTION...]   started in the background, until they answer; the pids are in
#                             $home and $away
#   tunnel src|dst COMMAND    drover-tunnel COMMAND vm
#   status src|dst FILTER     jq -r FILTER of its status
#   linked                    both ends say that the link is up
#   pings HOST ADDRESS        three answers come
#   as_before                 src and dst are as they were after lab_up, and no files are left
#   flows_start NAME ADDRESS COUNT [INTERVAL-MS [BULK]]   connections of the client, or $flows_from, to the VM
#   flows_stop NAME           their report is in NAME.json; fails if one broke or a byte was wrong
# shellcheck shell=bash

tunnel_binary=${DROVER_TUNNEL:-$DROVER_BUILD/tunnel/drover-tunnel}
lab_bin=$e2e_top/build/test/lab
# Looking for leaks at the end needs what the tunnel has forbidden itself.
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
[[ ! -x $DROVER_BUILD/test/lab/flows ]] || lab_bin=$DROVER_BUILD/test/lab
tunnel_prefix=dt$$
vm_mac=02:00:00:00:00:10
vm_options=(--mac $vm_mac --address 10.1.0.10/24 --address 2001:db8:1::10/60 --gateway fe80::1)

requires ip nft jq busybox
[[ $(id -u) == 0 ]] || skip "network namespaces need root"
[[ -x $lab_bin/flows && -x $lab_bin/wan-link ]] || skip "the lab is not built: ninja lab"
[[ -c /dev/net/tun ]] || skip "there is no /dev/net/tun"

at() { ip netns exec "$tunnel_prefix-$1" "${@:2}"; }
background_at() { background ip netns exec "$tunnel_prefix-$1" "${@:2}"; } # $pid is the command's own
net() { ip -n "$tunnel_prefix-$1" "${@:2}"; }

lab_down() {
    local host
    ((status == 0)) || tail -n 20 "$tmp"/{src,dst}.log >&2 # of e2e_end, which calls this
    for host in client wan gw1 gw2 src dst third vm switch; do
        ip netns pids "$tunnel_prefix-$host" 2>/dev/null | xargs -r kill -9 2>/dev/null
        ip netns delete "$tunnel_prefix-$host" 2>/dev/null
    done
    true
}

# cable HOST INTERFACE HOST INTERFACE
cable() { ip link add "$2" netns "$tunnel_prefix-$1" type veth peer name "$4" netns "$tunnel_prefix-$3"; }

# address HOST INTERFACE ADDRESS...
address() {
    local each
    for each in "${@:3}"; do
        if [[ $each == *:* ]]; then net "$1" address add "$each" dev "$2" nodad; else net "$1" address add "$each" dev "$2"; fi
    done
    net "$1" link set "$2" up
}

wan_link() {
    local name=$1
    shift
    background "$lab_bin/wan-link" run "$tmp/$name.wan" "$tunnel_prefix-$name/wan0" "$tunnel_prefix-wan/$name" "$@" >"$tmp/$name.wan.log" 2>&1
    wait_for 10 test -S "$tmp/$name.wan"
}
lab_link() { "$lab_bin/wan-link" ctl "$tmp/$1.wan" "${@:2}"; }

site_up() {
    local number=$1 host=$2 router=gw$1
    cable "$router" lan0 "$host" up0
    cable switch "$host" "$host" vm0
    net "$host" link add br0 type bridge
    net "$host" link set up0 master br0 up
    net "$host" link set vm0 master br0 up
    address "$router" lan0 "10.$number.0.1/24" "2001:db8:$number::1/64" fe80::1/64
    address "$router" wan0 "172.16.$number.2/30" "2001:db8:10$number::2/64"
    address wan "$router" "172.16.$number.1/30" "2001:db8:10$number::1/64"
    address "$host" br0 "10.$number.0.2/24" "2001:db8:$number::2/64"
    net "$host" route add default via "10.$number.0.1"
    net "$host" -6 route add default via "2001:db8:$number::1"
    net "$router" route add default via "172.16.$number.1"
    net "$router" -6 route add default via "2001:db8:10$number::1"
    net wan route add "10.$number.0.0/24" via "172.16.$number.2"
    net wan -6 route add "2001:db8:$number::/64" via "2001:db8:10$number::2"
    at "$router" sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan0.rp_filter=0
    at "$router" nft -f - <<NFT
table inet site {
  chain forward {
    type filter hook forward priority 0
    ct state invalid counter drop
    iifname lan0 ip saddr != 10.$number.0.0/24 counter drop
    iifname lan0 ip6 saddr != 2001:db8:$number::/64 counter drop
  }
}
NFT
}

lab_up() {
    local host
    on_exit lab_down
    for host in client wan gw1 gw2 src dst third vm switch; do
        ip netns add "$tunnel_prefix-$host"
        net "$host" link set lo up
        at "$host" sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.ip_forward=0
        at "$host" sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.accept_ra=0
        at "$host" sysctl -qw net.ipv4.tcp_congestion_control=cubic 2>/dev/null || true
    done
    for host in wan gw1 gw2; do at "$host" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; done
    wan_link gw1 delay=5 rate=200 "$@"
    wan_link gw2 delay=5 rate=200 "$@"
    cable client eth0 wan client
    address client eth0 10.9.0.2/24 2001:db8:9::2/64
    address wan client 10.9.0.1/24 2001:db8:9::1/64
    net client route add default via 10.9.0.1
    net client -6 route add default via 2001:db8:9::1
    site_up 1 src
    site_up 2 dst
    cable third eth0 src third
    net src link set third master br0 up
    address third eth0 10.1.0.20/24 2001:db8:1::20/64
    cable vm eth0 switch vm
    net vm link set eth0 address $vm_mac
    address vm eth0 10.1.0.10/24 2001:db8:1::10/64
    net vm route add default via 10.1.0.1
    net vm -6 route add default via fe80::1 dev eth0
    at switch sysctl -qw net.ipv6.conf.all.disable_ipv6=1
    net switch link add br0 type bridge mcast_snooping 0
    net switch link set br0 up
    net switch link set vm up master br0
    net switch link set src up
    net switch link set dst up
    vm_plug src
    background_at vm "$lab_bin/flows" serve 7777
    pings client 10.1.0.10
    pings src 10.2.0.2
    snapshot src >src.before
    snapshot dst >dst.before
}

vm_plug() {
    local host
    for host in src dst; do net switch link set $host nomaster; done
    [[ $1 == none ]] || net switch link set "$1" master br0
}

head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$tmp/key"
printf 'vm:%s\n' "$(cat "$tmp/key")" >"$tmp/psk"

tunnel() { at "$1" env DROVER_RUN="$tmp/run-$1" "$tunnel_binary" "$2" vm "${@:3}"; }
tunnel_answers() { tunnel "$1" status >/dev/null 2>&1; }
status() { tunnel "$1" status | jq -r "$2"; }
tunnel_start() {
    local host=$1
    shift
    background_at "$host" env DROVER_RUN="$tmp/run-$host" "$tunnel_binary" "$@" 2>>"$tmp/$host.log"
    wait_for 10 tunnel_answers "$host"
}
# shellcheck disable=SC2034 # for the tests
tunnel_home() {
    tunnel_start src home vm --bridge br0 "${vm_options[@]}" --dial "${tunnel_dial:-10.2.0.2:4789}" --psk-file "$tmp/psk" "$@"
    home=$pid
}
# shellcheck disable=SC2034
tunnel_away() {
    tunnel_start dst away vm --port vm0 "${vm_options[@]}" --listen "${tunnel_listen:-*:4789}" --psk-file "$tmp/psk" "$@"
    away=$pid
}
linked() { [[ $(status src .link.up) == true && $(status dst .link.up) == true ]]; }

pings() { # on a machine that is overloaded packets are lost
    local try
    for try in 1 2 3; do
        ! at "$1" busybox ping -q -c 3 -W 3 "$2" | grep -q '3 packets received' || return 0
    done
    return 1
}

snapshot() {
    at "$1" ip -o address | sed 's/ valid_lft.*//'
    at "$1" ip -4 route show table all
    at "$1" ip -6 route show table all
    at "$1" ip -4 rule
    at "$1" ip -6 rule
    at "$1" ip neigh show proxy
    at "$1" ip -o link | sed 's/ qdisc .*//; s/^[0-9]*: //'
    at "$1" nft list ruleset
    at "$1" sysctl -a 2>/dev/null | grep -E '^net\.ipv[46]\.(conf|neigh|ip_forward)' | sort
}

as_before() {
    local host
    for host in src dst; do
        snapshot $host | diff $host.before - || fail "$host is not as before"
        [[ -z $(find run-$host ! -type d) ]] || fail "files are left: $(find run-$host ! -type d)"
    done
}

flows_start() {
    local name=$1
    shift
    ip netns exec "$tunnel_prefix-${flows_from:-client}" "$lab_bin/flows" connect "$1" 7777 "${@:2}" >"$tmp/$name.out" 2>"$tmp/$name.err" &
    flows_pid[$name]=$!
    on_exit e2e_kill "${flows_pid[$name]}"
    wait_for 60 grep -qs open "$tmp/$name.out"
}
declare -A flows_pid
flows_stop() {
    local status=0
    kill -TERM "${flows_pid[$1]}"
    wait "${flows_pid[$1]}" || status=$?
    tail -n 1 "$tmp/$1.out" >"$tmp/$1.json"
    cat "$tmp/$1.json"
    ((status == 0)) || fail "connections broke: $(cat "$tmp/$1.json" "$tmp/$1.err")"
}
