#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Streams between two plugins by themselves: sparse images stay sparse and whole, and are read once, a destination
# that is not empty ends up right, sizes of any number of bytes, 8 TiB in bounded memory, and a destination that
# runs full.
# test: timeout=300 tsan-full
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
requires drover nbdkit qemu-io jq filefrag perl

# copy [ARGUMENT...]: src.img, which becomes the source, to a new destination dst.img
copy() {
    rm -rf src.img.drover dst.img.drover
    serve src src.img "$@"
    serve dst dst.img role=destination "size=$(stat -c %s src.img)" "$@"
    migration=$(new_id)
    prepare dst "$migration" 2
    replicate "$migration" 2
}

# What was replicated is handed over, and is then the same.
hand_over() {
    local quiesce token
    wait_for 60 phase_is in_sync
    quiesce=$(json .quiesce ctl "$tmp/src.ctl" quiesce '{"hold":true}')
    token=$(json .token ctl "$tmp/src.ctl" fence "{\"quiesce\":\"$quiesce\",\"refusal_hash\":\"$(printf '0%.0s' {1..64})\"}")
    ctl "$tmp/dst.ctl" promote "{\"migration\":\"$migration\",\"token\":\"$token\"}" >/dev/null
    [[ $(json .different ctl "$tmp/src.ctl" verify "{\"to\":{\"socket\":\"$tmp/dst.sock\"}}") == 0 ]] ||
        fail "verify finds a difference"
    wait_for 20 test -e src.img.fenced-2 # set aside after the answer to fence
    cmp src.img.fenced-2 dst.img || fail "the images differ"
    stop src
    stop dst
    rm -f src.img.fenced-2 dst.img
}

echo "# sparse stays sparse: no more space than the source, no more extents than a plain copy"
truncate -s 256M src.img
for at in 1 3 40 41 42 100 200 255; do
    dd if=/dev/urandom of=src.img bs=1M seek=$at count=1 conv=notrunc status=none
done
dd if=/dev/urandom of=src.img bs=4k seek=5000 count=1 conv=notrunc status=none
dd if=/dev/zero of=src.img bs=1M seek=60 count=4 conv=notrunc status=none # zeroes that are stored
cp --sparse=always src.img copy.img
sync -f src.img
copy
wait_for 60 phase_is in_sync
sync -f dst.img
used() { du -k "$1" | cut -f 1; }
extents() { filefrag "$1" | sed 's/.*: \([0-9]*\) extent.*/\1/'; }
(($(used dst.img) * 100 <= $(used src.img) * 101)) || fail "$(used dst.img) KiB used of $(used src.img)"
(($(extents dst.img) * 10 <= $(extents copy.img) * 11 + 10)) || fail "$(extents dst.img) extents, a copy has $(extents copy.img)"
hand_over

echo "# what has data is read once, and what has none not at all"
rm -rf src.img.drover dst.img.drover
truncate -s 64M src.img
for at in 1 3 40; do
    dd if=/dev/urandom of=src.img bs=1M seek=$at count=1 conv=notrunc status=none
done
dd if=/dev/urandom of=src.img bs=64k seek=333 count=3 conv=notrunc status=none
background nbdkit -f -U "$tmp/logged.sock" --filter=log file src.img logfile="$tmp/requests"
server=$pid
wait_for 20 test -S logged.sock
serve src "uri=nbd+unix:///?socket=$tmp/logged.sock" "state=$tmp/src.state"
serve dst dst.img role=destination size=64M
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2
wait_for 60 phase_is in_sync
cmp src.img dst.img || fail "the images differ"
perl -ne 'next unless / Read .*offset=0x([0-9a-f]+) count=0x([0-9a-f]+) /;
    for ($block = hex($1) >> 16; $block <= hex($1) + hex($2) - 1 >> 16; $block++) { $read{$block}++ }
    END { print join(" ", map { "$_:$read{$_}" } sort { $a <=> $b } keys %read), "\n" }' requests >blocks
[[ $(cat blocks) == "$(for block in {16..31} {48..63} {333..335} {640..655}; do echo "$block:1"; done | paste -sd ' ')" ]] ||
    fail "read were: $(cat blocks)"
ctl "$tmp/src.ctl" cancel >/dev/null
stop src
stop dst
kill "$server"
rm -rf src.img dst.img dst.img.drover src.state

echo "# a destination with old content, and a source that was a thick volume"
truncate -s 32M src.img
dd if=/dev/urandom of=src.img bs=1M seek=8 count=8 conv=notrunc status=none
dd if=/dev/urandom of=dst.img bs=1M count=32 status=none
copy
hand_over

echo "# any number of bytes, and other block sizes"
for size in 1 511 4097 1000003; do
    head -c $size /dev/urandom >src.img
    copy
    hand_over
done
for block in 4K 1M; do
    head -c 9000001 /dev/urandom >src.img
    truncate -s 20000003 src.img
    copy "block-size=$block"
    hand_over
done

echo "# 8 TiB, sparse, in bounded memory"
truncate -s 8T src.img
dd if=/dev/urandom of=src.img bs=64k seek=77777777 count=3 conv=notrunc status=none
copy
wait_for 120 phase_is in_sync
for name in src dst; do
    peak=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/${pid_of[$name]}/status")
    echo "$name: $peak KiB at most"
    # A bit a block of 64 KiB is 16 MiB; sanitizers have memory of their own.
    [[ $DROVER_BUILD == *-asan || $DROVER_BUILD == *-tsan ]] || ((peak < 200 * 1024)) || fail "$name took $peak KiB"
done
ctl "$tmp/src.ctl" cancel >/dev/null
[[ $(od -An -tx1 -j $((77777777 * 65536)) -N 196608 src.img | md5sum) == $(od -An -tx1 -j $((77777777 * 65536)) -N 196608 dst.img | md5sum) ]] ||
    fail "its data did not arrive"
stop src
stop dst
rm -f src.img dst.img

echo "# a destination that runs full: said so, and the client goes on"
mkdir small
mount -t tmpfs -o size=16M tmpfs small 2>/dev/null || skip "tmpfs can't be mounted here (all before this passed)"
on_exit umount "$tmp/small"
head -c 64M /dev/urandom >src.img
rm -rf src.img.drover
serve src src.img
serve dst "$tmp/small/full.img" role=destination size=64M "state=$tmp/dst.state"
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2
wait_for 60 phase_is failed
[[ $(json .replication.error ctl "$tmp/src.ctl" status) == *full* ]] || fail "$(ctl "$tmp/src.ctl" status)"
qemu-io -f raw -c 'write -P 7 5M 64k' -c 'read -P 7 5M 64k' "nbd+unix:///?socket=$tmp/src.sock" >/dev/null ||
    fail "the client does not go on"
ctl "$tmp/src.ctl" cancel >/dev/null
[[ $(json .role ctl "$tmp/src.ctl" status) == owner ]] || fail "not the owner any more"
stop src
stop dst
rm -rf small/* src.img src.img.drover

echo "# a source that runs full: its client is told, and what it has been told is at the destination as well"
truncate -s 64M small/src.img
head -c 4M /dev/urandom | dd of=small/src.img conv=notrunc status=none
rm -rf dst.img dst.img.drover
serve src small/src.img "state=$tmp/src.state"
serve dst dst.img role=destination size=64M
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2
wait_for 60 phase_is in_sync
full=0
for ((at = 8; at < 40; at++)); do
    qemu-io -f raw -c "write -P $at ${at}M 1M" "nbd+unix:///?socket=$tmp/src.sock" >io.out 2>&1 || full=1
    ! grep -q 'No space left' io.out || full=1
done
((full)) || fail "it did not run full"
qemu-io -f raw -c 'write -P 7 1M 64k' -c 'flush' "nbd+unix:///?socket=$tmp/src.sock" >/dev/null || fail "the client does not go on"
wait_for 60 phase_is in_sync
cmp small/src.img dst.img || fail "the images differ"
ctl "$tmp/src.ctl" cancel >/dev/null
stop src
