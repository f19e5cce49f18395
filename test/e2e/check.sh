#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# drover check says what a migration would trip over, each with its text and exit status, and changes nothing;
# what it finds nothing wrong with then moves.
# test: timeout=240
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit nbdinfo jq

site b 'listen = "127.0.0.1"' 'ports = "22439-22459"'
site a 'listen = "127.0.0.1"' 'ports = "22409-22429"'
printf '[timeouts]\nconnect = 3\n' >>a/drover.toml
ways_to_sites "$tmp/at"

disk=a/images/root.img
truncate -s 64M $disk
dd if=/dev/urandom of=$disk bs=1M count=30 conv=notrunc status=none
cat >a/vm.d/vm.toml <<TOML
name = "vm"
hypervisor = "none"
[[disk]]
name = "root"
file = "$tmp/$disk"
[hooks]
pre-check = ["$tmp/hook"]
TOML
printf '#!/bin/sh\ntouch %s/hook-was-run\nexit 1\n' "$tmp" >hook
chmod +x hook

there=(b --rsh "$tmp/at" --data-address 127.0.0.1)
# finds STATUS LEVEL WHERE ABOUT TEXT COMMAND...: the exit status, and a finding with all of these
finds() {
    local status=$1 level=$2 where=$3 about=$4 text=$5
    shift 5
    expect "$status" "$@" --json
    jq -e --arg level "$level" --arg where "$where" --arg about "$about" --arg text "$text" \
        '.findings | any(.level == $level and .where == $where and .about == $about and (.text + " " + .advice | contains($text)))' \
        out >/dev/null || fail "no $level at $where about $about: $text: $(jq . out)"
}
# The command that a finding about WHAT gives, between its backticks.
advised() { jq -r --arg about "$1" '.findings[] | select(.about == $about) | .advice | capture("`(?<it>[^`]*)`").it' out | head -n 1; }
no_problem() { jq -e '.findings | all(.level != "problem")' out >/dev/null || fail "$(jq . out)"; }

echo "# usage"
expect 2 drover check
expect 2 drover check vm b --nothing
expect 2 drover check vm b --downtime 60000
expect_text err "'handover'"
expect 2 drover check nobody
expect 2 drover check vm b --base "root=x" --base "root=y"

echo "# this side alone: what is not there yet is no problem as long as nothing is to be moved"
finds 0 warning here "disk root" "drover serve vm" drover check vm
finds 0 note here destination "no HOST was given" drover check vm
expect 0 drover check vm
expect_text out "ok       here: configuration: $tmp/a/vm.d/vm.toml is right: hypervisor none, 1 disks, 0 NICs"
expect_text out "warning  here: disk root: not served. To do: "
finds 1 problem here "disk root" "drover serve vm" drover check vm "${there[@]}"

echo "# nothing in the way, and nothing touched"
drover serve vm
expect 0 drover check vm "${there[@]}" # the agent makes its folders
state() { find a b \( -name '*.err' -o -name log \) -prune -o -printf '%p %y %s %m %T@\n' | sort; }
state >before
expect 0 drover check vm "${there[@]}" --max-bandwidth 20M --compress none --connections 3 --stall-timeout 9 --verify
! grep -E '^(warning|problem)' out || fail "$(cat out)"
expect_text out "ok       here: state: no migration is under way or unfinished"
expect_text out "note     here: hook pre-check: not run"
expect_text out "ok       b: agent: drover "
expect_text out "ok       b: VM name: vm and its disks may come here"
expect_text out "ok       b: ports: TCP port 22439 of 127.0.0.1 reached from here"
grep -q '^ok       b: images: .* free, the disks need 64.*M' out || fail "$(cat out)"
state | diff before - || fail "something has changed"
[[ ! -e hook-was-run ]] || fail "the hook was run"
expect 0 drover check vm "${there[@]}" --json
[[ $(jq -r '.vm, .host, .result' out | paste -sd ' ') == "vm b note" ]] || fail "$(cat out)"
finds 0 note here destination "was not looked at" drover check vm --to nbd://127.0.0.1 --disk-only

echo "# the way to the other side"
finds 1 problem there agent "\`false b $DROVER_REMOTE agent --stdio\`" drover check vm b --rsh false
finds 1 problem there ports "TCP port 22439 of 127.0.0.9" drover check vm b --rsh "$tmp/at" --data-address 127.0.0.9
finds 1 problem there ports "--data-address" drover check vm b --rsh "$tmp/at" --data-address 127.0.0.9
cp b/drover.toml b.toml
sed -i 's/^ports = .*/ports = "22439-22439"/' b/drover.toml
background nbdkit -f -i 127.0.0.1 -p 22439 null 1M
wait_for 10 nbdinfo --size nbd://127.0.0.1:22439 >/dev/null
finds 1 problem there ports "all ports from 22439 to 22439 are taken" drover check vm "${there[@]}"
kill "$pid"
wait_for 20 eventually_gone "$pid"
cp b.toml b/drover.toml

echo "# an agent that is older tells less"
cat >older <<SH
#!/bin/bash
sed -u 's/"method":"survey"/"method":"no-survey"/' | $tmp/at "\$@"
SH
chmod +x older
finds 0 warning there agent "update drover" drover check vm b --rsh "$tmp/older" --data-address 127.0.0.1
finds 0 ok there VM "would not be refused" drover check vm b --rsh "$tmp/older" --data-address 127.0.0.1
cat >another <<SH
#!/bin/bash
$tmp/at "\$@" | sed -u 's/"version":[0-9]*/"version":1/'
SH
chmod +x another
finds 1 problem there agent "speaks another protocol" drover check vm b --rsh "$tmp/another" --data-address 127.0.0.1

echo "# what the other side's drover.toml does not allow"
printf '[limits]\ndisk-size = "32M"\n' >>b/drover.toml
finds 1 problem there drover.toml "limits.disk-size of $tmp/b/drover.toml allows 32" drover check vm "${there[@]}"
cp b.toml b/drover.toml
: >b/file
sed -i "s|^images = .*|images = \"$tmp/b/file/images\"|" b/drover.toml
finds 1 problem there "disk root" "what is above it is no folder" drover check vm "${there[@]}"
cp b.toml b/drover.toml
mkdir -p b/images/vm
cp $disk b/images/vm/root.img
finds 1 problem there "disk root" "is there already, and no migration is known to have left it" drover check vm "${there[@]}"
rm -r b/images/vm
finds 1 problem there "disk root" "no-such.img" drover check vm "${there[@]}" --base no-such.img

if [[ $(id -u) == 0 ]]; then
    echo "# room"
    mount -t tmpfs -o size=20M none b/images
    on_exit eval "umount $tmp/b/images 2>/dev/null"
    finds 1 problem there images "what the disks hold now takes 30" drover check vm "${there[@]}"
    mount -o remount,size=40M b/images
    finds 0 warning there images "not if the guest fills them" drover check vm "${there[@]}"
    mount -o remount,size=80M b/images
    expect 0 drover check vm "${there[@]}" --json
    no_problem
    umount b/images
fi

echo "# its name is taken there"
truncate -s 1M b/own.img
printf 'name = "vm"\nhypervisor = "none"\n[[disk]]\nname = "other"\nfile = "%s"\n' "$tmp/b/own.img" >b/vm.d/vm.toml
"$tmp/at" b drover serve vm
finds 1 problem there "VM name" "vm is a VM of this host already (disk other" drover check vm "${there[@]}"
"$tmp/at" b drover serve --stop vm
rm -r b/vm.d/vm.toml b/state/vm

echo "# a migration that is under way, and one that nobody knows the end of"
sed -i '/^\[hooks\]/,$d' a/vm.d/vm.toml
move=(drover migrate vm "${there[@]}" --disk-only --detach)
"${move[@]}" --max-bandwidth 1M >move.out 2>move.err &
migration=$!
copies() { [[ $(drover ctl vm/root status | jq -r '.replication.phase') == bulk ]]; }
wait_for 20 copies
finds 1 problem here state "drover abort vm" drover check vm "${there[@]}"
drover abort vm >/dev/null
wait $migration || true
cat >dies <<SH
#!/bin/bash
[[ ! -e $tmp/asked ]] || exit 1
touch $tmp/asked
sed -u '/"method":"promote"/Q' | $tmp/at "\$@"
SH
chmod +x dies
expect 3 drover migrate vm b --rsh "$tmp/dies" --data-address 127.0.0.1 --disk-only --detach
finds 1 problem here state "drover recover vm" drover check vm
jq -e '.findings | all(.advice | contains("remove") | not)' out >/dev/null || fail "the only image may be removed: $(jq . out)"
expect 0 drover recover vm b --rsh "$tmp/at"

echo "# and then it moves"
expect 0 drover check vm "${there[@]}" --disk-only --detach --json
no_problem
expect 0 "${move[@]}"
drover serve --stop vm
# What it has left is there for its way back: 64 MiB without the 30 that it holds.
finds 0 ok there images "the disks need 34" "$tmp/at" b drover check vm a --rsh "$tmp/at" --data-address 127.0.0.1
"$tmp/at" b drover serve --stop vm

# ---- a hypervisor and its network

command -v qemu-system-x86_64 >/dev/null && command -v ip >/dev/null && command -v nft >/dev/null && command -v socat >/dev/null && command -v busybox >/dev/null && [[ $(id -u) == 0 ]] || {
    echo "the rest needs root, QEMU, ip, nft, socat and busybox"
    exit 0
}
ns=dc$$
ip netns add $ns
on_exit ip netns delete $ns
ip -n $ns link set lo up
ip -n $ns link add br0 type bridge
ip -n $ns address add 10.77.0.1/24 dev br0
ip -n $ns link set br0 up
inside() { ip netns exec $ns "$@"; }
# Two ports of the bridge, with a host behind each.
for host in 2 3; do
    ip netns add $ns-$host
    on_exit ip netns delete $ns-$host
    ip link add port$host netns $ns type veth peer name eth0 netns $ns-$host
    ip -n $ns link set port$host master br0 up
    ip -n $ns-$host address add 10.77.0.$host/24 dev eth0
    ip -n $ns-$host link set eth0 up
done
passes() { ip netns exec $ns-2 busybox ping -c 1 -W 2 10.77.0.3 >/dev/null; }
export DROVER_TUNNEL=${DROVER_TUNNEL:-$DROVER_BUILD/tunnel/drover-tunnel}

cat >>b/drover.toml <<TOML
bridges = ["br0", "br7"]
[timeouts]
connect = 3
[tunnel]
port = "tap{nic.index}"
[hypervisor.qemu]
command = ["qemu-system-x86_64", "-machine", "pc-i440fx-7.2", "-nodefaults", "-display", "none", "-m", "{memory}", "-qmp", "unix:{qmp},server=on,wait=off", "{disks}"]
disk-arguments = ["-blockdev", "driver=nbd,node-name=disk{disk.index},server.type=unix,server.path={disk.socket},reconnect-delay=60", "-device", "virtio-blk-pci,drive=disk{disk.index}"]
nic-arguments = []
TOML
truncate -s 16M a/images/guest.img local.img cd.iso
cat >a/vm.d/guest.toml <<TOML
name = "guest"
hypervisor = "qemu"
[[disk]]
name = "root"
file = "$tmp/a/images/guest.img"
[[nic]]
mac = "02:00:00:00:00:10"
bridge = "br0"
addresses = ["10.1.0.10/24"]
[network]
mode = "tunnel"
[qemu]
qmp = "$tmp/qmp"
memory = "65544K"
TOML
inside drover serve guest
# start_qemu WORD...: paused, as there is nothing for it to boot
start_qemu() {
    background ip netns exec $ns qemu-system-x86_64 -machine pc-i440fx-7.2 -nodefaults -display none -S \
        -qmp "unix:$tmp/qmp,server=on,wait=off" \
        -blockdev "driver=nbd,node-name=disk0,server.type=unix,server.path=$DROVER_RUN/guest/root.sock,reconnect-delay=60" \
        -device virtio-blk-pci,drive=disk0 "$@"
    wait_for 20 test -S qmp
}
stop_qemu() {
    kill "$pid"
    wait_for 20 eventually_gone "$pid"
    rm -f qmp
}
check=(inside drover check guest "${there[@]}")

echo "# a hypervisor that does not answer"
finds 1 problem here hypervisor "no QEMU answers there" "${check[@]}"
finds 1 problem here "disk root" "nobody uses it" "${check[@]}"

echo "# what would stay behind, and the memory of an emulated processor"
start_qemu -m 64M -drive "file=$tmp/local.img,format=raw,if=virtio,id=extra" \
    -drive "file=$tmp/cd.iso,format=raw,if=none,id=cd,media=cdrom,readonly=on" -device ide-cd,drive=cd
finds 1 problem here "device extra" "$tmp/local.img is no disk of the VM file" "${check[@]}"
finds 1 warning here "device cd" "$tmp/cd.iso" "${check[@]}"
finds 1 warning here memory "-m 65544K" "${check[@]}"
stop_qemu

echo "# a device that QEMU does not migrate"
start_qemu -m 65544K -object "memory-backend-file,id=shared,size=1M,share=on,mem-path=$tmp/shared" -device ivshmem-plain,memdev=shared
finds 1 problem here hypervisor "QEMU refuses to migrate it: " "${check[@]}"
stop_qemu

start_qemu -m 65544K
echo "# a clean one; what the addresses of a tunnel need is said all the same"
expect 0 "${check[@]}"
! grep -E '^(warning|problem)' out || fail "$(cat out)"
expect_text out "ok       here: hypervisor: QEMU "
expect_text out "ok       here: devices: no block device would stay behind"
expect_text out "note     here: addresses: as long as the tunnel is up, 10.1.0.10/24 stays the VM's"
expect_text out "ok       b: bridges: br0 there"
expect_text out "ok       b: tunnel: an away end can be put up here"
expect_text out "ok       b: ports: TCP port 22439, 22440 of 127.0.0.1 reached from here"
expect_text out "ok       b: ports: UDP port 22439 of 127.0.0.1 reached from here"

echo "# firewalls, and the rule that is given helps"
filtered_as_ip() { [[ $(inside cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null) == 1 ]]; } # br_netfilter
knows_bridges() { inside nft 'add table bridge trial; add chain bridge trial c; add rule bridge trial c meta ibrname "br0" counter' 2>/dev/null; }
can_take() { if [[ $1 == bridge ]]; then knows_bridges; else filtered_as_ip; fi; }
wait_for 10 passes
for family in bridge inet; do
    [[ $family == bridge ]] || filtered_as_ip || continue
    inside nft add table $family fw
    inside nft add chain $family fw forward '{ type filter hook forward priority 0; policy drop; }'
    ! passes || fail "the chain of $family drops nothing"
    finds 1 problem here firewall "chain forward of table $family fw drops what passes through bridge br0" "${check[@]}"
    finds 1 problem there firewall "insert rule $family fw forward" "${check[@]}"
    if can_take $family; then
        inside sh -c "$(advised firewall)"
        expect 0 "${check[@]}" --json
        no_problem
        passes || fail "the rule does not help"
    else
        echo "this kernel has no \"meta ibrname\": the rule for $family was not tried"
    fi
    inside nft flush ruleset
done
inside nft add table inet fw
inside nft add chain inet fw in '{ type filter hook input priority 0; }'
inside nft add rule inet fw in udp dport 22439-22459 drop
finds 1 problem there ports "UDP port 22439 of 127.0.0.1, where the agent listens: nothing comes back" "${check[@]}"
inside nft add rule inet fw in tcp dport 22440 drop
finds 1 problem there ports "TCP port 22440 of 127.0.0.1" "${check[@]}"
inside nft delete table inet fw

echo "# what the other side lacks"
cp a/vm.d/guest.toml guest.toml
cp b/drover.toml b.toml
sed -i 's/^bridge = .*/bridge = "br7"\nhome-bridge = "br0"/' a/vm.d/guest.toml
finds 1 problem there "NIC 02:00:00:00:00:10" "this host has no bridge br7" "${check[@]}"
sed -i 's/^bridge = .*/bridge = "br9"/' a/vm.d/guest.toml
finds 1 problem there drover.toml "'bridges' of $tmp/b/drover.toml does not allow it" "${check[@]}"
cp guest.toml a/vm.d/guest.toml
sed -i 's/^home-bridge.*//; s/^bridge = .*/&\nhome-bridge = "br8"/' a/vm.d/guest.toml
finds 1 problem here tunnel "'br8' is no bridge of this host" "${check[@]}"
cp guest.toml a/vm.d/guest.toml
sed -i 's/^command = \["qemu-system-x86_64"/command = ["no-such-program"/' b/drover.toml
finds 1 problem there hypervisor "no-such-program" "${check[@]}"
cp b.toml b/drover.toml

echo "# and it moves"
sed -i '/^\[network\]/,/^mode/d' a/vm.d/guest.toml
expect 0 "${check[@]}" --json
no_problem
expect 0 inside drover migrate guest "${there[@]}"
wait_for 20 eventually_gone "$pid"
echo '{"execute": "qmp_capabilities"}{"execute": "quit"}' | timeout 20 socat - "unix:$tmp/b/run/guest/qmp.sock" >/dev/null || true
echo "all well"
