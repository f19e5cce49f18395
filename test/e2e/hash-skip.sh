#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154 # tmp is set by functions.sh
# What the destination has already does not travel: a disk that comes back, also after a way back that
# failed, and one that starts from a template there (--base). Asserted on bytes sent and on content.
# test: timeout=300
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io qemu-nbd jq

site a 'listen = "127.0.0.1"' 'ports = "22609-22629"'
site b 'listen = "127.0.0.1"' 'ports = "22639-22659"'
ways_to_sites "$tmp/at"

block=65536
slack=$((96 * 1024)) # frames' headers and tables, marks, holes

# vm NAME DISK...: its VM file at site a; each disk: 64 MiB, 24 of it data
vm() {
    local disk
    printf 'name = "%s"\nhypervisor = "none"\n' "$1" >"a/vm.d/$1.toml"
    for disk in "${@:2}"; do
        truncate -s 64M "a/images/$1-$disk.img"
        dd if=/dev/urandom of="a/images/$1-$disk.img" bs=1M seek=8 count=24 conv=notrunc status=none
        printf '[[disk]]\nname = "%s"\nfile = "%s"\n' "$disk" "$tmp/a/images/$1-$disk.img" >>"a/vm.d/$1.toml"
    done
}
# move SITE VM HOST [MORE]: from that site; its report is in ./report
move() {
    "$tmp/at" "$1" drover migrate "$2" "$3" --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach --json \
        "${@:4}" >out 2>err || fail "status $?: $(cat out err)"
    jq -c 'select(.event == "report")' out >report
}
sent() { jq .bytes_sent report; }
# At most so many blocks of 64 KiB were sent.
sent_blocks() {
    local most=$(($1 * block * 105 / 100 + slack))
    (($(sent) <= most)) || fail "$(sent) bytes were sent for $1 changed blocks, more than $most"
    (($(sent) >= $1 * block)) || fail "$(sent) bytes were sent for $1 changed blocks"
}
# write SITE VM DISK OFFSET PATTERN [LENGTH]
write() {
    qemu-io -f raw -c "write -P $5 $4 ${6-4k}" -c flush "nbd+unix:///?socket=$tmp/$1/run/$2/$3.sock" >/dev/null ||
        fail "no write at $1"
}

site a
echo "# there and back: what was changed there"
vm vm1 root
drover serve vm1 >serve.out
move a vm1 b
(($(sent) >= 24 << 20)) || fail "only $(sent) bytes were sent to an empty image"
write b vm1 root 9M 1
write b vm1 root 20M 2 200k # in 4 blocks
write b vm1 root 50M 3 64k # was a hole
move b vm1 a
sent_blocks 6
cmp a/images/vm1-root.img b/images/vm1/root.img.fenced-*
[[ -z $(compgen -G "a/images/vm1-root.img.fenced-*") ]] || fail "left: $(ls a/images)"

echo "# and to the other side again, with nothing changed"
move a vm1 b
sent_blocks 0
cmp b/images/vm1/root.img a/images/vm1-root.img.fenced-*

echo "# a way back that fails half way: the old image is set aside again, and the base of the next try"
write b vm1 root 10M 5
write b vm1 root 12M 6
mkdir steps
export DROVER_TEST_STEPS=$tmp/steps
mkfifo steps/source.handover steps/source.handover.go
"$tmp/at" b drover migrate vm1 a --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach >out 2>err &
moving=$!
timeout 20 cat steps/source.handover >/dev/null || fail "it did not come to the handover: $(cat out err)"
write b vm1 root 14M 7
"$tmp/at" b drover abort vm1 >/dev/null 2>&1 &
sleep 0.5
timeout 5 bash -c ': >steps/source.handover.go' || true
status=0
wait $moving || status=$?
wait
unset DROVER_TEST_STEPS
((status == 1)) || fail "status $status: $(cat out err)"
[[ -n $(compgen -G "a/images/vm1-root.img.fenced-*") && ! -e a/images/vm1-root.img ]] ||
    fail "the old image is lost, or in its place: $(ls a/images)"
expect 1 "$tmp/at" a drover serve vm1
move b vm1 a
(($(sent) <= 3 * block + slack)) || fail "$(sent) bytes were sent after a way back that failed"
cmp a/images/vm1-root.img b/images/vm1/root.img.fenced-*

echo "# a template there: what differs, also where the disk has a hole, or the template ends"
vm vm2 root data
cp a/images/vm2-root.img root.before
cp a/images/vm2-data.img data.before
for disk in root data; do
    head -c 40M $disk.before >b/images/$disk-template.img
    for at in 9 13 17; do
        printf x | dd of=b/images/$disk-template.img bs=1 seek=${at}M conv=notrunc status=none
    done
    dd if=/dev/urandom of=b/images/$disk-template.img bs=64k seek=600 count=2 conv=notrunc status=none # holes here
done
mkdir b/images/templates
mv b/images/data-template.img b/images/templates/data
cp b/images/root-template.img template.before
drover serve vm2 >serve.out
# A client writes while it moves.
qemu-io -f raw -c 'write -P 9 60M 64k' -c flush "nbd+unix:///?socket=$tmp/a/run/vm2/root.sock" >/dev/null
move a vm2 b --base root=root-template.img --base "data=$tmp/b/images/templates/data" --verify
sent_blocks 7
for disk in root data; do
    cmp b/images/vm2/$disk.img a/images/vm2-$disk.img.fenced-*
done
cmp template.before b/images/root-template.img # never written
[[ $(stat -c %b b/images/vm2/data.img) -le $((26 * 2048)) ]] || fail "the holes are not kept"

echo "# one disk, its template larger than it"
vm vm3 root
cp a/images/vm3-root.img b/images/large.img
truncate -s 80M b/images/large.img
printf x | dd of=b/images/large.img bs=1 seek=70M conv=notrunc status=none
drover serve vm3 >serve.out
move a vm3 b --base large.img
sent_blocks 0
cmp b/images/vm3/root.img a/images/vm3-root.img.fenced-*

echo "# what may not be a base, and what that leaves: nothing"
vm vm4 root
drover serve vm4 >serve.out
printf 'secret' >outside.img
ln -s ../../outside.img b/images/link.img
ln -s .. b/images/up
mkfifo b/images/fifo.img
refused() { # IMAGE TEXT
    local status=0
    drover migrate vm4 b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach --base "$1" >out 2>err || status=$?
    ((status == 1)) || fail "base $1: status $status: $(cat out err)"
    expect_text err "$2"
    expect_text err "nothing was changed"
    [[ ! -e b/images/vm4 && ! -e b/state/vm4/root/record ]] || fail "something is left of $1"
}
refused "$tmp/outside.img" "it is not below"
refused ../../outside.img "without . and .."
refused "$tmp/b/images/../../outside.img" "without . and .."
refused link.img "symbolic link"
refused up/outside.img "base up/outside.img"
refused fifo.img "not a regular file"
refused templates "not a regular file"
refused none.img "No such file"
refused vm3/root.img "marked as another disk"
background qemu-nbd -t -f raw -k "$tmp/used.sock" b/images/large.img
wait_for 10 test -S used.sock
refused large.img "is in use"
printf 'name = "other"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/b/images/root-template.img" \
    >b/vm.d/other.toml
refused root-template.img "it is disk root of other"
expect 2 drover migrate vm2 b --rsh "$tmp/at" --disk-only --base root-template.img
expect_text err "DISK=IMAGE"
