#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154 # tmp is set by functions.sh
# What the destination has already does not travel: a disk that comes back, also after a way back that
# failed, and one that starts from a template there (--base). Asserted on bytes sent and on content.
# test: timeout=300
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io jq

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
