#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# drover migrate --disk-only, between two sites on this host: the client stays connected and goes on
# at the destination; --detach; two disks at one point; any NBD server as the destination; what keeps
# a migration from starting.
# test: asan tsan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io qemu-img qemu-nbd fio jq

site a 'listen = "127.0.0.1"' 'ports = "21809-21829"'
site b 'listen = "127.0.0.1"' 'ports = "21839-21859"'

ways_to_sites "$tmp/at"

# vm NAME DISK...: its VM file at site a, with 48 MiB of data on each 64 MiB disk
vm() {
    local name=$1 disk
    printf 'name = "%s"\nhypervisor = "none"\n' "$name" >"$tmp/a/vm.d/$name.toml"
    for disk in "${@:2}"; do
        truncate -s 64M "$tmp/a/images/$name-$disk.img"
        dd if=/dev/urandom of="$tmp/a/images/$name-$disk.img" bs=1M count=48 conv=notrunc status=none
        printf '[[disk]]\nname = "%s"\nfile = "%s"\n' "$disk" "$tmp/a/images/$name-$disk.img" \
            >>"$tmp/a/vm.d/$name.toml"
    done
    drover serve "$name"
}

sock() { echo "$tmp/a/run/$1/$2.sock"; }
uri() { echo "nbd+unix:///?socket=$(sock "$1" "$2")"; }
migrate() { drover migrate "$1" b --rsh "$tmp/at" --data-address 127.0.0.1 "${@:2}"; }
role() { "$tmp/at" "$1" drover ctl "$2" status | jq -r .role; }
at_b() { "$tmp/at" b "$@"; }

site a
echo "# the client writes through the whole move, and reads its own writes at the end"
vm vm1 root
cp a/images/vm1-root.img before.img
cat >job.fio <<FIO
[job]
ioengine=nbd
uri=$(uri vm1 root)
rw=randwrite
bsrange=4k-64k
iodepth=8
size=40M
io_size=400M
rate=25M
verify=crc32c
verify_backlog=64
do_verify=1
verify_fatal=1
randrepeat=0
FIO
fio --output=fio.log job.fio &
fio=$!
wait_for 10 test -e "$(sock vm1 root)"
expect 0 migrate vm1 --disk-only --json
[[ $(jq -r 'select(.event=="report").result' out) == "done" ]] || fail "no report: $(cat out)"
jq -e 'select(.event=="report") | (.downtime_ms | type) == "number" and .bytes_sent > 0 and .disk_only' out >/dev/null ||
    fail "the report: $(cat out)"
wait $fio || fail "the client saw an error: $(cat fio.log)"
[[ $(role a vm1/root) == forwarding && $(role b vm1/root) == owner ]] || fail "roles"
[[ $(jq -r .result a/state/vm1/last-migration.json) == "done" ]] || fail "no report is kept"
[[ $(jq -r .checksum a/state/vm1/last-migration.json) == $(head -n -1 a/state/vm1/last-migration.json | sha256sum | cut -d ' ' -f 1) ]] ||
    fail "checksum of the report: $(cat a/state/vm1/last-migration.json)"
qemu-io -f raw -c 'write -P 0x5a 1M 4k' -c flush "$(uri vm1 root)" >/dev/null
drover serve --stop vm1
at_b drover serve --stop vm1
qemu-io -f raw -c 'read -P 0x5a 1M 4k' b/images/vm1/root.img | grep -q 'read 4096' ||
    fail "what the client wrote after the move is not at the destination"
[[ -e $(compgen -G "a/images/vm1-root.img.fenced-*") ]] || fail "the source's image is not set aside"

echo "# two disks with --detach: fenced here, identical there, at one point"
vm vm2 root data
cp a/images/vm2-root.img root.img
cp a/images/vm2-data.img data.img
expect 0 migrate vm2 --disk-only --detach
for disk in root data; do
    [[ $(role a "vm2/$disk") == fenced && $(role b "vm2/$disk") == owner ]] || fail "roles of $disk"
done
verify() { drover verify vm2 b --rsh "$tmp/at" --data-address 127.0.0.1 "$@"; }
expect 0 verify
expect_text out "vm2/data: the same in all 1024 blocks"
qemu-io -f raw -c 'write -P 0x42 8M 4k' -c flush "nbd+unix:///?socket=$tmp/b/run/vm2/data.sock" >/dev/null
expect 0 verify --json
jq -es '.[1] | .disk == "data" and .different == 0 and .written == 1' out >/dev/null ||
    fail "verify: $(cat out)"
printf '\x42%.0s' {1..4096} | dd of=data.img bs=4096 seek=2048 conv=notrunc status=none
at_b drover serve --stop vm2
cmp root.img b/images/vm2/root.img
cmp data.img b/images/vm2/data.img
drover serve --stop vm2

echo "# any NBD server: qemu-nbd, and nbdkit file"
vm vm3 root
truncate -s 64M plain.img
background qemu-nbd -t -f raw -k "$tmp/plain.sock" --cache=writeback plain.img
wait_for 10 test -S plain.sock
expect 0 drover migrate vm3 --to "nbd+unix:///?socket=$tmp/plain.sock" --disk-only
qemu-io -f raw -c 'write -P 0x77 0 4k' -c flush "$(uri vm3 root)" >/dev/null
qemu-io -f raw -c 'read -P 0x77 0 4k' plain.img | grep -q 'read 4096' || fail "not forwarded to qemu-nbd"
[[ $(role a vm3/root) == forwarding ]] || fail "role after a move to qemu-nbd"
drover serve --stop vm3

vm vm4 root
cp a/images/vm4-root.img before.img
head -c 64M /dev/zero | tr '\0' '\377' >full.img # not empty: nothing of it may be left
background nbdkit -f -U "$tmp/file.sock" file full.img
wait_for 10 test -S file.sock
expect 0 drover migrate vm4 --to "nbd+unix:///?socket=$tmp/file.sock" --disk-only --detach
cmp before.img full.img
drover serve --stop vm4

echo "# before anything is touched"
vm vm5 root
expect 0 migrate vm5 --disk-only --dry-run
[[ ! -e b/images/vm5 && $(role a vm5/root) == owner ]] || fail "a dry run changed something"
expect 1 drover migrate vm5 b --disk-only --rsh false
expect_text err "nothing was changed"
mkdir -p b/images/vm5
echo precious >b/images/vm5/root.img
expect 1 migrate vm5 --disk-only
expect_text err "b/images/vm5/root.img is there already"
[[ $(cat b/images/vm5/root.img) == precious ]] || fail "an unknown image was overwritten"
rm b/images/vm5/root.img
expect 2 drover migrate vm5 --disk-only --to 'nbd://127.0.0.1:1' --rsh 'unclosed "' --detach nonsense
drover serve --stop vm5
expect 1 migrate vm5 --disk-only
expect_text err "drover serve"

echo "# more than the destination allows, or has: it says so, and the next try is clean"
drover serve vm5
truncate -s 32M small.img
printf 'name = "vm5"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/small.img" \
    >b/vm.d/vm5.toml
expect 1 migrate vm5 --disk-only
expect_text err "small.img has 33554432 bytes, not 67108864"
rm b/vm.d/vm5.toml
printf '[limits]\ndisk-size = "32M"\n' >>b/drover.toml
expect 1 migrate vm5 --disk-only
expect_text err "limits.disk-size"
sed -i '/limits/,$d' b/drover.toml
expect 0 migrate vm5 --disk-only --detach
drover serve --stop vm5

echo "# data that shrinks takes fewer bytes; and the limits are changed while it runs"
truncate -s 64M a/images/vm7-root.img
seq 5000000 | dd of=a/images/vm7-root.img conv=notrunc bs=1M iflag=fullblock status=none
cp a/images/vm7-root.img root.img
printf 'name = "vm7"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' \
    "$tmp/a/images/vm7-root.img" >a/vm.d/vm7.toml
drover serve vm7
migrate vm7 --disk-only --detach --compress zstd --max-bandwidth 16K --json >set.out 2>set.err &
migration=$!
copies() { [[ $(drover ctl vm7/root status | jq -r .replication.phase) == bulk ]]; }
wait_for 20 copies
expect 2 drover set vm7
expect 0 drover set vm7 --max-bandwidth 0 --downtime 500
wait $migration || fail "it failed: $(cat set.err)"
at_b drover serve --stop vm7
cmp root.img b/images/vm7/root.img
sent=$(jq 'select(.event=="report").bytes_sent' set.out)
((sent < 20 * 1024 * 1024)) || fail "$sent bytes were sent for 40 MiB of text"
