#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# `drover serve`: the disks of a VM are served, found again, survive their starter, are replaced
# when they die, and are stopped with everything written.
# test: timeout=120 asan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires jq nbdinfo nbdcopy qemu-io

site src 'listen = "127.0.0.1"' 'ports = "21400-21449"'
truncate -s 64M images-root
head -c 3000001 /dev/urandom >data.img # an odd number of bytes
cp data.img data.orig
cat >src/vm.d/vm1.toml <<VM
name = "vm1"
hypervisor = "none"
[[disk]]
name = "root"
file = "$tmp/images-root"
[[disk]]
name = "data"
file = "$tmp/data.img"
VM
root="nbd+unix:///?socket=$DROVER_RUN/vm1/root.sock"
data="nbd+unix:///?socket=$DROVER_RUN/vm1/data.sock"
pid_of() { jq .pid "$DROVER_RUN/vm1/$1.json"; }

# Nothing is there yet.
expect 0 drover status vm1
expect_text out "vm1  root  no"
expect 0 drover serve --stop vm1
expect_text out "vm1/root: was not served"
expect 1 drover ctl vm1/root status
expect_text err "is the disk being served?"

# Served once it returns; a second time says so; by path as well.
expect 0 drover serve vm1
expect_text out "vm1/root: served on $DROVER_RUN/vm1/root.sock (replication on port 214"
[[ $(nbdinfo --size "$root") == 67108864 ]] || fail "size of root"
expect 0 drover serve "$tmp/src/vm.d/vm1.toml"
expect_text out "vm1/data: is already served on"
[[ $(stat -c %a "$DROVER_RUN/vm1/root.sock" "$DROVER_RUN/vm1/root.ctl") == $'600\n600' ]] || fail "modes of the sockets"
[[ $(stat -c %a "$DROVER_STATE/vm1/root/psk") == 600 ]] || fail "mode of the keys"

# The process: not ours, in /, in no terminal's session, without a descriptor of ours.
pid=$(pid_of root)
[[ $(readlink "/proc/$pid/cwd") == / ]] || fail "it holds our directory"
[[ $(cut -d ' ' -f 4 "/proc/$pid/stat") != "$$" ]] || fail "it is our child"
[[ $(cut -d ' ' -f 6 "/proc/$pid/stat") != $(cut -d ' ' -f 6 "/proc/$$/stat") ]] || fail "it is in our session"

# What a client writes is there; the image keeps its odd size.
[[ $(nbdinfo --size "$data") == 3000001 ]] || fail "size of data"
nbdcopy "$data" - | cmp - data.orig
printf drover | dd of=data.orig bs=1 seek=2999995 conv=notrunc status=none
nbdcopy data.orig "$data"
qemu-io -f raw -c 'write -P 0x5a 1M 64k' "$root" >/dev/null

[[ $(json .role drover ctl vm1/root status) == owner ]] || fail "role"
[[ $(json '.vms[0].disks | map(.served) | all' drover status vm1 --json) == true ]] || fail "status"
expect 1 drover abort vm1
expect_text err "no migration is running"
expect 2 drover ctl vm1/root status '{"bogus": 1}'
expect_text err "unknown parameter 'bogus'"
expect 2 drover ctl vm1/root nonsense
timeout 10 drover ctl vm1/root subscribe '{"interval_ms": 50}' >notes & subscriber=$!
enough() { [[ $(wc -l <notes) -ge 4 ]]; }
wait_for 10 enough
kill $subscriber
[[ $(sed -n 4p notes | jq -r .role) == owner ]] || fail "subscribe"

# Over TCP nothing without a key.
port=$(jq .port "$DROVER_RUN/vm1/root.json")
expect 1 nbdinfo "nbd://127.0.0.1:$port"

# One that dies is replaced, the other is left alone.
other=$(pid_of data)
kill -9 "$pid"
wait_for 10 eventually_gone "$pid"
expect 0 drover status vm1
expect_text out "vm1  root  no"
expect 0 drover serve vm1
[[ $(pid_of root) != "$pid" ]] || fail "root was not started again"
[[ $(pid_of data) == "$other" ]] || fail "data was started again"
qemu-io -r -f raw -c 'read -P 0x5a 1M 64k' "$root" >/dev/null

# Stopped: processes and sockets are gone, everything is written.
pid=$(pid_of root)
expect 0 drover serve --stop vm1
expect_text out "vm1/data: stopped"
eventually_gone "$pid" || fail "nbdkit is still there"
[[ ! -e $DROVER_RUN/vm1 ]] || fail "left behind: $(ls "$DROVER_RUN/vm1")"
cmp data.img data.orig
qemu-io -r -f raw -c 'read -P 0x5a 1M 64k' images-root >/dev/null
expect 0 drover status vm1
expect_text out "vm1  root  no      owner  1"

# A note that is not whole is told, is never replaced, and neither keeps a disk from being stopped nor
# has it started twice.
expect 0 drover serve vm1
pid=$(pid_of root)
note=$DROVER_RUN/vm1/root.json
jq -e '.format == "drover-disk" and .version == 1' "$note" >/dev/null
[[ $(jq -r .checksum "$note") == $(head -n -1 "$note" | sha256sum | cut -d ' ' -f 1) ]] || fail "checksum of $note: $(cat "$note")"
cp "$note" whole.json
for damage in 's/"port":/"prot":/' 's/"version":1/"version":2/' '1d' 's/.*//' "1s/^/$(printf '[%.0s' {1..3000})/"; do
    sed "$damage" whole.json >"$note"
    cp "$note" damaged.json
    expect 0 drover status vm1
    expect_text out "$note: "
    expect_text out "move it away"
    [[ $(json '.vms[0].disks[0] | .served, .port' drover status vm1 --json) == true$'\n'null ]] || fail "status"
    expect 0 drover serve vm1
    expect_text out "vm1/root: is already served on"
    expect_text err "$note: "
    [[ $(json .pid drover ctl vm1/root status) == "$pid" ]] || fail "root was started again"
    cmp "$note" damaged.json
done
expect 0 drover serve --stop vm1
expect_text out "vm1/root: stopped"
expect_text err "$note: "
eventually_gone "$pid" || fail "nbdkit is still there"
expect 1 drover serve vm1
expect_text err "$note: "
expect_text err "move it away"
cmp "$note" damaged.json
expect 0 drover status vm1
expect_text out "$note: "
rm "$note"
expect 0 drover serve vm1
expect 0 drover serve --stop vm1
[[ ! -e $DROVER_RUN/vm1 ]] || fail "left behind: $(ls "$DROVER_RUN/vm1")"

# In the foreground: until a signal; until it is stopped from elsewhere; until a disk dies.
served() { drover ctl vm1/data status >/dev/null 2>&1 && grep -q vm1/data: foreground; }
background drover serve --foreground vm1 >foreground
wait_for 10 served
kill -TERM "$pid"
wait "$pid" || fail "it did not stop cleanly"
[[ ! -e $DROVER_RUN/vm1 ]] || fail "left behind after SIGTERM"
: >foreground
background drover serve --foreground vm1 >foreground
wait_for 10 served
expect 0 drover serve --stop vm1
wait "$pid" || fail "stopped from elsewhere is no failure"
: >foreground
background drover serve --foreground vm1 >foreground 2>died
wait_for 10 served
kill -9 "$(pid_of root)"
status=0
wait "$pid" || status=$?
[[ $status == 1 ]] || fail "exit status $status when a disk died"
expect_text died "disk vm1/root: nbdkit has died"
nbdinfo --size "$data" >/dev/null
expect 0 drover serve --stop vm1

# A disk that can't be served: nbdkit's own words, the others stopped again, nothing left.
qemu-io -f raw -c 'write 0 512' -c 'sleep 60000' data.img >/dev/null & holder=$!
on_exit e2e_kill $holder
wait_for 10 grep -q "$(stat -c %i data.img)" /proc/locks
expect 1 drover serve vm1
expect_text err "disk vm1/data: nbdkit ended at its start: "
[[ ! -e $DROVER_RUN/vm1 ]] || fail "left behind after a failed start"
kill $holder && wait $holder || true

# Mistakes in the files are told with their place, and touch nothing.
sed -i 's/^name = "data"/nmae = "data"/' src/vm.d/vm1.toml
expect 2 drover serve vm1
expect_text err "src/vm.d/vm1.toml:6: 'disk[1].name': is missing"
sed -i 's/^nmae = "data"/name = "data"/; s/data.img/nothing.img/' src/vm.d/vm1.toml
expect 2 drover serve vm1
expect_text err "src/vm.d/vm1.toml:8: 'disk[1].file': a raw image or a block device is expected"
echo 'port = "1-2"' >>src/drover.toml
expect 2 drover check vm1
expect_text err "drover.toml:4: 'port': unknown key; known here: "
DROVER_CONF=$tmp/missing.toml expect 2 drover check vm1
[[ ! -e $DROVER_RUN/vm1 ]] || fail "something was touched"
echo "all well"
