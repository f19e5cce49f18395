#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The plugin by itself: help and errors, what it refuses over TCP, and a stream from one NBD server behind uri= to any
# other as its destination.
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit nbdinfo qemu-io qemu-img qemu-nbd jq psktool

uri="nbd+unix:///?socket=$tmp/disk.sock"
server() { # ARGUMENT...
    rm -f disk.sock
    background nbdkit -f -t 32 -U "$tmp/disk.sock" "$@"
    wait_for 20 test -S disk.sock
}

echo "# help and facts"
nbdkit "$DROVER_PLUGIN" --help >help
expect_text help control=PATH
nbdkit "$DROVER_PLUGIN" --dump-plugin >facts
expect_text facts drover_wire_version=1
expect 1 nbdkit "$DROVER_PLUGIN" disk.img no-such=1
expect_text err "unknown parameter 'no-such'"
expect 1 nbdkit "$DROVER_PLUGIN" no-such-file.img
expect_text err no-such-file.img

echo "# over TCP the disk itself is not served"
truncate -s 33M disk.img
printf 'user:%s\n' "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >psk
background nbdkit -f -i 127.0.0.1 -p 21899 --tls=on --tls-psk="$tmp/psk" "$DROVER_PLUGIN" disk.img
tcp=$pid
wait_for 10 bash -c 'exec 3<>/dev/tcp/127.0.0.1/21899' 2>/dev/null
expect 1 nbdinfo nbd://127.0.0.1:21899/
expect 1 nbdinfo "nbds://user@127.0.0.1:21899/?tls-psk-file=$tmp/psk"
kill "$tcp"
wait_for 30 eventually_gone "$tcp"

echo "# another server behind it: qcow2 by qemu-nbd"
qemu-img create -q -f qcow2 disk.qcow2 20M
background qemu-nbd -t -e 8 -k "$tmp/qcow2.sock" -f qcow2 disk.qcow2
wait_for 20 test -S qcow2.sock
server "$DROVER_PLUGIN" "uri=nbd+unix:///?socket=$tmp/qcow2.sock" "state=$tmp/qcow2.state" "control=$tmp/disk.ctl"
qemu-io -f raw -c 'write -P 3 1M 3M' -c 'discard 2M 512k' -c flush -c 'read -P 3 1M 1M' "$uri" >/dev/null

echo "# and any server as the destination: qemu-nbd, and nbdkit file with old content"
head -c 20M /dev/urandom >thick.img
background nbdkit -f -U "$tmp/thick.sock" file thick.img
truncate -s 20M raw.img
background qemu-nbd -t -e 8 -k "$tmp/raw.sock" -f raw --discard=unmap raw.img
wait_for 20 test -S thick.sock
wait_for 20 test -S raw.sock
generation=1
for there in thick raw; do
    generation=$((generation + 1))
    migration=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    drover ctl "$tmp/disk.ctl" replicate "{\"migration\":\"$migration\",\"generation\":$generation,\"to\":{\"uri\":\"nbd+unix:///?socket=$tmp/$there.sock\"}}" >/dev/null
    in_sync() { [[ $(json .replication.phase drover ctl "$tmp/disk.ctl" status) == in_sync ]]; }
    wait_for 30 in_sync
    qemu-io -f raw -c 'write -P 4 7M 1M' -c 'write -z 1M 100k' -c flush "$uri" >/dev/null
    drover ctl "$tmp/disk.ctl" quiesce '{"hold":true}' >/dev/null
    qemu-img compare -f raw -F raw "$uri" "nbd+unix:///?socket=$tmp/$there.sock" >/dev/null || fail "$there.img differs"
    drover ctl "$tmp/disk.ctl" cancel >/dev/null
done
qemu-io -f raw -c 'write -P 5 8M 64k' "$uri" >/dev/null || fail "the client does not go on"
