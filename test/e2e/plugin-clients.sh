#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The plugin by itself, served plainly, under real clients: what it offers, odd sizes, read-only,
# several clients, filters above it, another NBD server below it.
# test: timeout=200
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires nbdkit nbdinfo nbdcopy qemu-img qemu-io qemu-nbd jq

# stop: what was served last
stop() {
    kill "$pid"
    wait_for 20 eventually_gone "$pid"
}
# serve NAME PARAMETER...: the plugin on $tmp/NAME.sock; words before -- go to nbdkit itself
serve() {
    local name=$1 kit=()
    shift
    while [[ ${1-} == -* ]]; do
        if [[ $1 == -- ]]; then
            shift
            break
        fi
        kit+=("$1")
        shift
    done
    rm -f "$name.sock"
    background nbdkit -f -t 32 -U "$tmp/$name.sock" "${kit[@]}" "$DROVER_PLUGIN" "$@"
    wait_for 20 test -S "$name.sock"
}
uri() { echo "nbd+unix:///?socket=$tmp/$1.sock"; }
io() {
    local name=$1 words=() command
    shift
    for command; do
        words+=(-c "$command")
    done
    qemu-io -f raw "${words[@]}" "$(uri "$name")" >io.out 2>&1 || {
        cat io.out >&2
        fail "qemu-io: $*"
    }
    if grep -qiE 'error|failed|mismatch' io.out; then
        cat io.out >&2
        fail "qemu-io: $*"
    fi
}

# It says what it is.
nbdkit "$DROVER_PLUGIN" --help >help
expect_text help "block-size="
nbdkit "$DROVER_PLUGIN" --dump-plugin >dump
expect_text dump "drover_wire_version="
expect 1 nbdkit "$DROVER_PLUGIN" no-such-file.img
expect_text err "no-such-file.img"
truncate -s 1M small.img
expect 1 nbdkit "$DROVER_PLUGIN" small.img colour=red
expect_text err "unknown parameter 'colour'"
expect 1 nbdkit "$DROVER_PLUGIN"
expect_text err "give the disk"

# Everything that NBD has.
truncate -s 64M disk.img
serve plain disk.img
nbdinfo --json "$(uri plain)" | jq '.exports[0]' >info
for flag in can_cache can_df can_fast_zero can_flush can_fua can_multi_conn can_trim can_zero; do
    [[ $(jq ".$flag" info) == true ]] || fail "it does not offer $flag"
done
[[ $(jq .is_read_only info) == false ]] || fail "it is read-only"
[[ $(jq '."export-size"' info) == 67108864 ]] || fail "size"
[[ $(jq -c '[.block_size_minimum, .block_size_preferred, .block_size_maximum]' info) == "[1,4096,4294967295]" ]] ||
    fail "block sizes: $(cat info)"
io plain "write -P 0x11 0 1M" "write -P 0x22 -f 4k 8k" "write -z 64k 64k" "write -z -u 128k 64k" \
    "write -z -n 192k 64k" "discard 256k 64k" "flush" \
    "read -P 0x11 0 4k" "read -P 0x22 4k 8k" "read -P 0 64k 192k" "read -P 0 256k 64k" "read -P 0x11 320k 64k"
qemu-img compare -f raw -F raw "$(uri plain)" disk.img >/dev/null
# Extents are those of the file.
nbdinfo --map "$(uri plain)" --json >map
[[ $(jq 'map(select(.type == 3).length) | add' map) -ge $((62 * 1024 * 1024)) ]] || fail "no holes in the map"

# Several clients, each sees what the others wrote.
io plain "write -P 0x33 2M 64k" "flush"
for i in 1 2 3 4; do
    qemu-io -f raw -c "write -P 0x4$i $((2048 + 64 * i))k 64k" "$(uri plain)" >/dev/null &
done
wait $(jobs -p | tail -n 4)
for i in 1 2 3 4; do
    io plain "read -P 0x4$i $((2048 + 64 * i))k 64k" "read -P 0x33 2M 64k"
done
head -c 30M /dev/urandom >data
nbdcopy -C 4 data "$(uri plain)"
nbdcopy "$(uri plain)" back
cmp -n $((30 << 20)) back data

# A second server of the same image is refused.
expect 1 nbdkit -f -U second.sock "$DROVER_PLUGIN" disk.img
expect_text err "is in use"
stop

# Read-only.
serve read-only -r -- disk.img
[[ $(nbdinfo --json "$(uri read-only)" | jq '.exports[0].is_read_only') == true ]] || fail "not read-only"
qemu-io -r -f raw -c "read 0 64k" "$(uri read-only)" >/dev/null
qemu-io -f raw -c "write 0 64k" "$(uri read-only)" >io.out 2>&1 && fail "a write went through"
stop

# Sizes that are no multiple of anything.
for size in 1 511 513 4097 65535 65537 1000001; do
    head -c "$size" /dev/urandom >"odd-$size"
    truncate -s "$size" odd.img
    serve "odd$size" odd.img
    [[ $(nbdinfo --size "$(uri "odd$size")") == "$size" ]] || fail "size $size"
    nbdcopy "odd-$size" "$(uri "odd$size")"
    nbdcopy "$(uri "odd$size")" - | cmp - "odd-$size" || fail "content of $size bytes"
    stop
    cmp odd.img "odd-$size" || fail "the image of $size bytes"
    rm -f odd.img odd.img.* "odd-$size"
done

# Under nbdkit's filters.
truncate -s 16M filtered.img
serve filtered --filter=log --filter=delay --filter=cow --filter=stats -- filtered.img logfile="$tmp/log.txt" \
    rdelay=1ms wdelay=1ms statsfile="$tmp/stats.txt"
io filtered "write -P 0x55 0 256k" "write -z 64k 64k" "read -P 0x55 0 64k" "read -P 0 64k 64k" "flush"
expect_text log.txt "Write"
stop
serve rate --filter=rate --filter=blocksize -- filtered.img rate=800M minblock=4k
io rate "write -P 0x56 0 256k" "read -P 0x56 100k 100k"
stop

# Any NBD server below it: qcow2 through qemu-nbd, and nbdkit's own.
qemu-img create -q -f qcow2 disk.qcow2 32M
background qemu-nbd -f qcow2 -k "$tmp/qcow2.sock" -t -e 8 disk.qcow2
qcow2_pid=$pid
wait_for 20 test -S qcow2.sock
serve over "uri=nbd+unix:///?socket=$tmp/qcow2.sock"
[[ $(nbdinfo --size "$(uri over)") == 33554432 ]] || fail "size through qcow2"
io over "write -P 0x66 0 1M" "write -z -u 64k 64k" "discard 1M 64k" "flush" "read -P 0x66 0 64k" "read -P 0 64k 64k"
head -c 20M data >part
nbdcopy part "$(uri over)"
nbdcopy "$(uri over)" back
cmp -n $((20 << 20)) back part
# That server is started again, and then killed: a client notices nothing.
over_pid=$pid
qcow2_again() {
    kill "$1" "$qcow2_pid"
    wait_for 20 eventually_gone "$qcow2_pid"
    background qemu-nbd -f qcow2 -k "$tmp/qcow2.sock" -t -e 8 disk.qcow2 5>&-
    qcow2_pid=$pid
}
# told COMMAND TEXT: the client has done it, which is when it says TEXT once more
mkfifo client.in
qemu-io -f raw "$(uri over)" <client.in >client.out 2>&1 &
client=$!
on_exit e2e_kill "$client"
exec 5>client.in
said() { [[ $(grep -c "$1" client.out) == "$2" ]]; }
told() {
    local before
    before=$(grep -c "$2" client.out) || true
    echo "$1" >&5
    wait_for 40 said "$2" $((before + 1))
}
told "write -P 0x67 24M 64k" "wrote 65536"
qcow2_again -TERM
told "write -P 0x68 25M 64k" "wrote 65536"
qcow2_again -KILL
told "read -P 0x67 24M 64k" "read 65536"
told "read -P 0x68 25M 64k" "read 65536"
exec 5>&-
wait "$client" || fail "the client saw: $(cat client.out)"
if grep -qiE 'error|failed|mismatch' client.out; then
    fail "the client saw: $(cat client.out)"
fi
io over flush
# What a client had under way that went while that server was gone is not done beside what the next one writes.
kill -KILL "$qcow2_pid"
wait_for 20 eventually_gone "$qcow2_pid"
timeout 1 qemu-io -f raw -c "write -P 0x69 26M 64k" "$(uri over)" >io.out 2>&1 && fail "it did not wait: $(cat io.out)"
background qemu-nbd -f qcow2 -k "$tmp/qcow2.sock" -t -e 8 disk.qcow2
qcow2_pid=$pid
wait_for 20 test -S qcow2.sock
io over flush
pid=$over_pid
stop
kill "$qcow2_pid"
wait_for 20 eventually_gone "$qcow2_pid"
qemu-img convert -f qcow2 -O raw disk.qcow2 back.img
cmp -n $((20 << 20)) back.img part
cmp -n 65536 -i 26M:0 back.img /dev/zero || fail "a client's write was done after its end"
qemu-img check -q disk.qcow2

# Killed, it leaves what was flushed.
serve killed filtered.img
io killed "write -P 0x77 1M 64k" "flush"
kill -9 "$pid"
wait_for 20 eventually_gone "$pid"
serve again filtered.img
io again "read -P 0x77 1M 64k"
