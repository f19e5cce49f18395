#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A VM that has its old addresses by DHCP and router advertisements, with leases and lifetimes of seconds, keeps them
# while it is elsewhere and when it is back: real servers at both sites, of which the new one has another network and the
# same link-local address of its router.
# test: timeout=400
# test: slow
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/tunnel-functions.sh
source "$e2e_top/test/e2e/tunnel-functions.sh"
requires dnsmasq

vm_slaac=2001:db8:1::ff:fe00:10 # of its MAC
vm_options=(--mac "$vm_mac" --address 10.1.0.10/24 --address "$vm_slaac/64" --gateway fe80::1)
lab_up

# Bound to the interface, an address each: the routers have no other link-local one than fe80::1.
for number in 1 2; do
    net gw$number -6 address flush dev lan0 scope link
    net gw$number address add fe80::1/64 dev lan0 nodad
done
router_advertisements() { # SITE: each 4 s, for 12 s
    background_at gw"$1" dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --user=root --interface=lan0 \
        --bind-interfaces --pid-file= --log-facility="$tmp/gw$1.log" --leasefile-ro --enable-ra \
        --ra-param=lan0,4,12 --dhcp-range="2001:db8:$1::,ra-only,64,2m" "${@:2}"
}
router_advertisements 1
# It takes whoever asks for an address of another network for lost, and says NAK.
router_advertisements 2 --dhcp-authoritative --dhcp-range=10.2.0.100,10.2.0.110,2m --log-dhcp
cat >udhcpd.conf <<CONF
start 10.1.0.10
end 10.1.0.10
interface lan0
lease_file $tmp/leases
pidfile $tmp/udhcpd.pid
option subnet 255.255.255.0
option router 10.1.0.1
option lease 30
min_lease 10
CONF
: >leases
background_at gw1 busybox udhcpd -f -I 10.1.0.1 udhcpd.conf >udhcpd.log 2>&1

net vm address flush dev eth0 scope global
net vm -6 route flush default
at vm sysctl -qw net.ipv6.conf.eth0.accept_ra=1
cat >lease.sh <<SH
#!/bin/bash
echo "\$(date +%s) \$1 \${ip:-}" >>"$tmp/client.log"
if [[ \$1 == bound ]]; then
    ip address replace "\$ip/\$mask" dev eth0
    ip route replace default via "\$router" dev eth0
fi
# A NAK, or a lease that nobody renewed.
[[ \$1 != deconfig ]] || ip -4 address flush dev eth0
SH
chmod +x lease.sh
background_at vm busybox udhcpc -f -i eth0 -t 5 -T 1 -A 1 -s "$tmp/lease.sh" >udhcpc.log 2>&1
client=$pid
count() { grep -c " $1 10.1.0.10" client.log || true; }
renewed() { (($(count renew) >= $1)); }
has_slaac() { net vm -6 address show dev eth0 scope global | grep -q "$vm_slaac"; }
has_router() { net vm -6 route show default | grep -q 'via fe80::1 .*expires'; }
wait_for 30 grep -qs "bound 10.1.0.10" client.log
wait_for 30 has_slaac
wait_for 30 has_router
pings client 10.1.0.10
pings client $vm_slaac
deconfigured=$(grep -c deconfig client.log)

as_ever() { # WHERE: it has its addresses, its router, and no others
    [[ $(grep -c deconfig client.log) == "$deconfigured" ]] || fail "$1: the lease was lost: $(cat client.log)"
    has_slaac || fail "$1: its own address was lost: $(net vm -6 address)"
    wait_for 30 has_router # for 12 s after what it says each few; a busy one may be late
    [[ $(net vm address show dev eth0) != *2001:db8:2:* ]] || fail "$1: the new site's router has given it an address"
    [[ $(net vm -6 neigh show fe80::1) == *"$router_mac"* ]] || fail "$1: its router has another MAC: $(net vm -6 neigh)"
}
router_mac=$(at gw1 cat /sys/class/net/lan0/address)
seen_there() { at gw2 cat "$tmp/gw2.log" 2>/dev/null | grep "$vm_mac" || true; }

echo "# away: it renews, over more than one lease and router's lifetime"
tunnel_away
tunnel_home --keep forever
wait_for 20 linked
flows_start v4 10.1.0.10 20 500
flows_start v6 $vm_slaac 20 500
tunnel src divert
vm_plug dst
tunnel dst resume
before=$(count renew)
wait_for 60 renewed $((before + 3))
as_ever away
[[ -z $(seen_there) ]] || fail "the new site's server has heard of it: $(seen_there)"

echo "# and rebinds, where the server is not reached otherwise"
at gw1 nft add table inet unicast
at gw1 nft add chain inet unicast in '{ type filter hook input priority 0; }'
at gw1 nft add rule inet unicast in ip daddr 10.1.0.1 udp dport 67 counter drop
dropped() { at gw1 nft list table inet unicast | grep -q 'packets [1-9]'; }
kill -USR1 "$client" # with a lease as short as this one it may not ask the server alone by itself
wait_for 60 dropped
before=$(count renew)
wait_for 60 renewed $((before + 2))
at gw1 nft delete table inet unicast
as_ever "away, rebinding"
[[ -z $(seen_there) ]] || fail "the new site's server has heard of it: $(seen_there)"

echo "# it may ask the new site for an address of its own"
cat >other.sh <<SH
#!/bin/bash
echo "\$1 \${ip:-}" >>"$tmp/other.log"
SH
chmod +x other.sh
at vm busybox udhcpc -f -n -q -i eth0 -t 5 -T 2 -s "$tmp/other.sh" >/dev/null 2>&1 || fail "no new address: $(cat gw2.log)"
grep -q "bound 10.2.0.1" other.log || fail "a new address: $(cat other.log)"
as_ever "away, asking"

echo "# back home: as if nothing had been"
tunnel dst hold
vm_plug src
tunnel src rollback --certain
before=$(count renew)
wait_for 60 renewed $((before + 2))
as_ever home
flows_stop v4
flows_stop v6
tunnel src close
wait_for 10 eventually_gone "$home"
wait_for 10 eventually_gone "$away"
as_before
