#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The names of a VM that moves get its new addresses at a real BIND: A, AAAA and PTR, with a TTL that is lowered before and is as it
# was after; with wrong keys, a server that is not there or says what it likes, records that somebody else changes meanwhile, and a
# coordinator that is killed.
# test: timeout=420
# In a network of its own: nobody else's ports, and the server at its usual one.
if [[ -z ${DNS_TEST_NETWORK:-} ]]; then
    command -v named >/dev/null || { echo "skipped: named is not installed"; exit 77; }
    unshare --net true 2>/dev/null || { echo "skipped: no network namespace can be made here"; exit 77; }
    DNS_TEST_NETWORK=made exec unshare --net "$0" "$@"
fi
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
requires drover nbdkit qemu-io jq named dig nsupdate tsig-keygen socat ip
ip link set lo up

site b 'listen = "127.0.0.1"' 'ports = "22639-22659"'
site a 'listen = "127.0.0.1"' 'ports = "22609-22629"'
ways_to_sites "$tmp/at"

# --- the server

mkdir named
tsig-keygen -a hmac-sha256 drover-key >named/key
(umask 077 && cp named/key vm.key)
(umask 077 && sed 's/drover-key/nobodys-key/' named/key >unknown.key)
(umask 077 && tsig-keygen -a hmac-sha256 drover-key >wrong.key)
(umask 077 && tsig-keygen -a hmac-sha512 reader-key | tee named/reader >reader.key)
secret=$(sed -n 's/.*secret "\(.*\)";/\1/p' vm.key)
cat >named/conf <<CONF
include "$tmp/named/key";
include "$tmp/named/reader";
options {
    directory "$tmp/named"; pid-file "$tmp/named/pid"; session-keyfile "$tmp/named/session";
    listen-on { 127.0.0.1; }; listen-on-v6 { ::1; };
    recursion no; dnssec-validation no; notify no;
};
controls { };
zone "example.test" { type master; file "example"; allow-update { key drover-key; }; };
zone "10.in-addr.arpa" { type master; file "v4"; update-policy { grant drover-key zonesub PTR; }; };
zone "8.b.d.0.1.0.0.2.ip6.arpa" { type master; file "v6"; allow-update { key drover-key; }; };
CONF
zone() { printf '$TTL 3600\n@ SOA ns.example.test. admin.example.test. 1 3600 600 86400 300\n@ NS ns.example.test.\n'; }
named_up() {
    background named -g -n 1 -c "$tmp/named/conf" >>named/log 2>&1
    named=$pid
    wait_for 20 answers
}
named_down() {
    kill "$named"
    wait_for 20 eventually_gone "$named"
}
answers() { dig +time=1 +tries=1 @127.0.0.1 example.test SOA | grep -q 'status: NOERROR'; }
# What is at the server: "TTL DATA" of each.
at_server() { dig +noall +answer @127.0.0.1 "$1" "$2" | awk '{ print $2, $5 }' | sort | paste -sd,; }
has() { [[ $(at_server "$1" "$2") == "$3" ]] || fail "$1 $2 is '$(at_server "$1" "$2")', not '$3'"; }
is() { [[ $(at_server "$1" "$2") == "$3" ]]; }
by_somebody() { printf 'server 127.0.0.1\n%s\nsend\n' "$1" | nsupdate -k named/key; }
{
    zone
    echo 'ns A 127.0.0.1'
    echo 'alias CNAME vm1'
} >named/example
zone >named/v4
zone >named/v6
named_up

# --- the VMs, each with its own names, which it has as VM number N: 10.1.0.N, 2001:db8:1::N here, 10.2.0.N, 2001:db8:2::N at b

v6_ptr() { dig +noall +question @127.0.0.1 -x "$1" | sed -n 's/^;\(.*ip6.arpa\.\).*/\1/p'; }
number=0
new_vm() { # [LINE of [network.dns]...]
    number=$((number + 1))
    vm=vm$number
    by_somebody "update add $vm.example.test 3600 A 10.1.0.$number
update add $vm.example.test 3600 AAAA 2001:db8:1::$number"
    by_somebody "update add $number.0.1.10.in-addr.arpa 7200 PTR $vm.example.test"
    by_somebody "update add $(v6_ptr "2001:db8:1::$number") 3600 PTR $vm.example.test"
    truncate -s 8M "a/images/$vm.img"
    cat >"a/vm.d/$vm.toml" <<TOML
name = "$vm"
hypervisor = "none"
[[disk]]
name = "root"
file = "$tmp/a/images/$vm.img"
[network.dns]
names = ["$vm.example.test"]
server = "127.0.0.1"
key-file = "$tmp/vm.key"
ttl = 20
$(printf '%s\n' "$@")
TOML
    [[ $* == *address-hook* ]] ||
        printf '[network.dns.address]\nb = ["10.2.0.%d", "2001:db8:2::%d"]\n' $number $number >>"a/vm.d/$vm.toml"
    drover serve $vm >/dev/null
}
name() { echo "vm$number.example.test"; }
set_line() { sed -i "s|^$1 = .*|$1 = $2|" "a/vm.d/$vm.toml"; }
is_old() { # TTL [TTL of PTR]
    has "$(name)" A "$1 10.1.0.$number"
    has "$(name)" AAAA "$1 2001:db8:1::$number"
    has "$number.0.1.10.in-addr.arpa" PTR "${2:-7200} $(name)."
    has "$number.0.2.10.in-addr.arpa" PTR ""
}
is_new() {
    has "$(name)" A "3600 10.2.0.$number"
    has "$(name)" AAAA "3600 2001:db8:2::$number"
    has "$number.0.1.10.in-addr.arpa" PTR ""
    has "$(v6_ptr "2001:db8:1::$number")" PTR ""
    has "$number.0.2.10.in-addr.arpa" PTR "3600 $(name)."
    has "$(v6_ptr "2001:db8:2::$number")" PTR "3600 $(name)."
}
nothing_owed() { [[ ! -e a/state/$vm/dns.state ]] || fail "still owed: $(cat "a/state/$vm/dns.state")"; }
there() { echo b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach; }
# shellcheck disable=SC2046 # words
migrate() { expect "$1" drover migrate $vm $(there); }
# shellcheck disable=SC2046
migrate_to() { # STEP: stands there
    stop_at "$1"
    drover migrate $vm $(there) >out 2>err &
    coordinator=$!
    reached "$1"
}
guardian_gone() { ! pgrep -f "guardian $tmp/a/vm.d/$vm.toml" >/dev/null; }
ends() { # STATUS
    local status=0
    wait "$coordinator" || status=$?
    ((status == $1)) || fail "status $status, not $1: $(cat out err)"
}
# finds STATUS LEVEL TEXT
finds() {
    # shellcheck disable=SC2046
    expect "$1" drover check $vm $(there) --json
    jq -e --arg level "$2" --arg text "$3" '.findings | any(.about == "dns" and .level == $level and (.text + .advice | contains($text)))' \
        out >/dev/null || fail "no $2 about dns: $3: $(jq . out)"
}

echo "# what is wrong in the file is told before anything is touched"
new_vm
chmod 640 vm.key
migrate 2
expect_text err "'network.dns.key-file': $tmp/vm.key: a secret is in it"
chmod 600 vm.key
set_line key-file "\"$tmp/none.key\""
migrate 2
expect_text err "No such file"
set_line key-file "\"$tmp/vm.key\""
sed -i 's/^b = /c = /' "a/vm.d/$vm.toml"
migrate 2
expect_text err "does not say which addresses $vm has at b"
sed -i 's/^c = /b = /' "a/vm.d/$vm.toml"

echo "# the server that is not asked rightly: check says why, and no migration begins"
refused() { # KEY TEXT
    set_line "$1" "$2"
    finds 1 problem "$3"
    migrate 1
    expect_text err "$3"
    expect_text err "nothing was changed"
    is_old 3600
    nothing_owed
}
refused key-file "\"$tmp/wrong.key\"" "it has another secret for the key 'drover-key.' (BADSIG)"
refused key-file "\"$tmp/unknown.key\"" "it knows no key 'nobodys-key.' of hmac-sha256. (BADKEY)"
refused key-file "\"$tmp/reader.key\"" "it does not let this key update"
set_line key-file "\"$tmp/vm.key\""
refused server '"127.0.0.1:5353"' "DNS server 127.0.0.1:5353: it can't be asked (TCP): Connection refused"
# says_at PORT COMMAND: a server of its own kind
says_at() {
    printf '#!/bin/sh\n%s\n' "$2" >"says-$1"
    chmod +x "says-$1"
    background socat "TCP-LISTEN:$1,fork,reuseaddr" "EXEC:$tmp/says-$1" 2>/dev/null
}
says_at 5354 'exec sleep 30'
says_at 5355 'head -c 100000 /dev/urandom'
says_at 5356 'head -c 20 /dev/zero | tr "\000" "\014"' # 3,084 bytes, it says
says_at 5357 'printf "\000\014"; head -c 12 /dev/zero'
refused server '"127.0.0.1:5354"' "it does not answer"
set_line server '"127.0.0.1:5355"'
finds 1 problem "DNS server 127.0.0.1:5355: "
set_line server '"127.0.0.1:5356"'
finds 1 problem "it closes the connection and does not answer"
refused server '"127.0.0.1:5357"' "what it answers is not for this question"
set_line server '"127.0.0.1"'
refused names '["nobody.example.test"]' "nobody.example.test. has neither an A nor an AAAA record"
refused names '["alias.example.test"]' "it is an alias (CNAME)"
refused names '["vm1.example.org"]' "it is not authoritative for vm1.example.org."
set_line names "[\"$(name)\"]"

echo "# moved; lowered meanwhile"
finds 0 warning "records have a TTL of 7200 s"
migrate_to source.handover
is_old 20 20
go_on source.handover
ends 0
is_new
nothing_owed

echo "# the same over IPv6; a second name, which has no AAAA; and no PTR"
new_vm 'ptr = false'
by_somebody "update add www$number.example.test 600 A 10.1.0.$number"
set_line server '"::1"'
set_line names "[\"$(name)\", \"WWW$number.example.test.\"]"
migrate 0
has "$(name)" A "3600 10.2.0.$number"
has "www$number.example.test" A "600 10.2.0.$number"
has "www$number.example.test" AAAA "600 2001:db8:2::$number"
has "$number.0.1.10.in-addr.arpa" PTR "7200 $(name)."
nothing_owed

echo "# aborted: the TTL is as it was"
new_vm
migrate_to source.handover
kill -INT $coordinator
go_on source.handover
ends 1
is_old 3600
nothing_owed

echo "# the coordinator is killed, before and behind the switchover: its guardian does it"
migrate_to source.handover
kill -9 $coordinator
wait $coordinator 2>/dev/null || true
wait_for 60 is "$(name)" A "3600 10.1.0.$number"
wait_for 60 guardian_gone
is_old 3600
nothing_owed
go_on source.handover
migrate_to source.finish
kill -9 $coordinator
wait $coordinator 2>/dev/null || true
wait_for 60 guardian_gone
is_new
nothing_owed
go_on source.finish

echo "# the server is gone when the names are to turn: the VM has moved all the same, and the guardian tries again"
new_vm
migrate_to source.handover
named_down
go_on source.handover
ends 0
expect_text err "drover dns $vm --settle"
[[ -e a/state/$vm/dns.state ]] || fail "nothing is owed"
named_up
wait_for 60 is "$(name)" A "3600 10.2.0.$number"
wait_for 60 guardian_gone
is_new
nothing_owed

new_vm
migrate_to source.handover
named_down
kill -INT $coordinator
go_on source.handover
ends 1
expect_text err "goes on here as before"
expect_text err "drover dns $vm --settle"
named_up
expect 0 drover dns $vm --settle
is_old 3600
nothing_owed
wait_for 60 guardian_gone

echo "# somebody else changes a record meanwhile: it is left alone"
new_vm
migrate_to source.handover
by_somebody "update delete $(name) A
update add $(name) 900 A 10.9.9.9"
go_on source.handover
ends 0
expect_text err "somebody else has changed a record, and it is left as it is: $(name). A 10.9.9.9 (TTL 900)"
has "$(name)" A "900 10.9.9.9"
has "$(name)" AAAA "3600 2001:db8:2::$number"
nothing_owed
new_vm
by_somebody "update add $number.0.2.10.in-addr.arpa 3600 PTR other.example.test"
migrate 1
expect_text err "the new address has a PTR record of somebody else"
has "$(name)" A "3600 10.1.0.$number"

echo "# a hook says the address"
printf '#!/bin/sh\n[ ! -e %s/no-address ] || exit 3\necho "10.3.0.${DROVER_VM#vm}"\n' "$tmp" >hook
chmod +x hook
new_vm "address-hook = [\"$tmp/hook\"]"
touch no-address
migrate 0
expect_text err "hook address: exit status 3"
has "$(name)" A "20 10.1.0.$number"
rm no-address
wait_for 60 is "$(name)" A "3600 10.3.0.$number"
wait_for 60 guardian_gone
has "$(name)" AAAA ""
has "$number.0.3.10.in-addr.arpa" PTR "3600 $(name)."
nothing_owed

echo "# by hand"
new_vm
expect 0 drover dns $vm
expect_text out "$(name). A 10.1.0.$number (TTL 3600)"
expect 0 drover dns $vm --lower
is_old 20 20
expect 0 drover dns $vm
expect_text out "their TTL is lowered"
expect 0 drover dns $vm --lower
expect 0 drover dns $vm --restore
is_old 3600
expect 0 drover dns $vm --lower
migrate_to source.handover
kill -INT $coordinator
go_on source.handover
ends 1
is_old 3600
expect 0 drover dns $vm --moved b
is_new
expect 0 drover dns $vm --settle
expect_text out "nothing is left to do"
expect 2 drover dns $vm --lower --restore

! grep -rqF "$secret" a b out err named/log || fail "the key is in $(grep -rlF "$secret" a b out err named/log)"
echo "all well"
