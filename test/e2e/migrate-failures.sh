#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A disk's migration that fails before the fence: the client goes on at the source, the destination
# is cleaned up, the status is 1, the message says why, and the same command works afterwards.
# test: asan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io jq

site b 'listen = "127.0.0.1"' 'ports = "21939-21959"'
site a 'listen = "127.0.0.1"' 'ports = "21909-21929"'
cat >"$tmp/at" <<SH
#!/bin/bash
export DROVER_CONF=$tmp/\$1/drover.toml DROVER_RUN=$tmp/\$1/run DROVER_STATE=$tmp/\$1/state
shift
exec "\$@"
SH
chmod +x "$tmp/at"
export DROVER_REMOTE
DROVER_REMOTE=$(command -v drover)

disk=a/images/root.img
truncate -s 256M $disk
dd if=/dev/urandom of=$disk bs=1M count=200 conv=notrunc status=none
cat >a/vm.d/vm.toml <<TOML
name = "vm"
hypervisor = "none"
[[disk]]
name = "root"
file = "$tmp/$disk"
[hooks]
pre-switchover = ["$tmp/veto"]
failed = ["$tmp/failed"]
TOML
printf '#!/bin/sh\nexit 0\n' >veto
# shellcheck disable=SC2016 # the hook's own variables
printf '#!/bin/sh\necho "$DROVER_VM $DROVER_HOOK" >%s/hook.log\n' "$tmp" >failed
chmod +x veto failed
drover serve vm
uri="nbd+unix:///?socket=$tmp/a/run/vm/root.sock"

bare=(drover migrate vm b --data-address 127.0.0.1 --disk-only --detach)
command=("${bare[@]}" --rsh "$tmp/at")
slow=(--max-bandwidth 10M) # 20 s of copying
phase() { drover ctl vm/root status | jq -r '.replication.phase'; }
is_phase() { [[ $(phase) == "$1" ]]; }

# Everything as it was: ours, writable, and nothing at the other side but the record of it.
as_before() {
    [[ $(drover ctl vm/root status | jq -r '.role, (.replication | tostring)' | paste -sd ' ') == "owner null" ]] ||
        fail "the source: $(drover ctl vm/root status)"
    qemu-io -f raw -c "write -P $1 4M 64k" -c flush -c "read -P $1 4M 64k" "$uri" | grep -q 'read 65536' ||
        fail "the client can't go on"
    [[ ! -e b/images/vm && ! -e b/run/vm/root.sock ]] || fail "left behind: $(find b)"
    expect_text hook.log "vm failed"
    rm hook.log
}

# started: a slow migration in the background, its pid in $migration; returns when it copies
started() {
    "${command[@]}" "${slow[@]}" >first.out 2>first.err &
    migration=$!
    wait_for 20 is_phase bulk
}
ended() {
    local status=0
    wait "$migration" || status=$?
    ((status == $1)) || fail "exit status $status, not $1: $(cat first.out first.err)"
}

echo "# Ctrl-C, SIGTERM, drover abort"
for signal in INT TERM; do
    started
    kill -$signal "$migration"
    ended 1
    expect_text first.err "aborted by SIG$signal; it goes on here as before"
    as_before 0x11
done
started
drover status vm | grep -q copy || fail "status does not show the migration"
expect 0 drover abort vm
ended 1
as_before 0x12

echo "# nobody where the data links dial"
expect 1 drover migrate vm b --rsh "$tmp/at" --data-address 127.0.0.9 --disk-only
expect_text err "disk root: replicate:"
as_before 0x10

echo "# a second coordinator is refused, and changes nothing"
started
expect 1 "${command[@]}"
expect_text "$tmp/err" "being migrated already"
drover abort vm >/dev/null
ended 1
as_before 0x13

echo "# the agent dies; the destination's nbdkit does, again and again"
started
kill -9 "$(pgrep -P "$migration" -f 'agent --stdio')"
ended 1
expect_text first.err "the agent at b is gone"
started # what it has left is no hindrance
# Another one, which serves the disk.
is_alive() {
    local now
    now=$("$tmp/at" b drover ctl vm/root status 2>/dev/null | jq .pid) || return 1
    [[ -n $now && $now != "$1" ]]
}
for _ in 1 2 3; do
    server=$(jq .pid b/run/vm/root.json)
    kill -9 "$server"
    end=$((SECONDS + 20))
    until is_alive "$server"; do
        ((SECONDS < end)) || fail "it is not started again: $(cat first.out first.err)"
        sleep 0.02
    done
done
kill -9 "$(jq .pid b/run/vm/root.json)"
ended 1
expect_text first.err "disk root: its nbdkit has ended"
as_before 0x15

echo "# the coordinator is killed: the agent cleans up, and the next one takes the rest back"
started
kill -9 "$migration"
wait "$migration" 2>/dev/null || true
wait_for 20 test ! -e b/images/vm
started
kill -TERM "$migration"
ended 1
as_before 0x18

echo "# a hook's veto; a time-out"
printf '#!/bin/sh\nexit 7\n' >veto
expect 1 "${command[@]}"
expect_text err "hook pre-switchover: exit status 7"
as_before 0x16
printf '#!/bin/sh\nexit 0\n' >veto
expect 1 "${command[@]}" "${slow[@]}" --converge-timeout 2
expect_text err "not ready after 2 s"
as_before 0x17
expect 1 "${command[@]}" --max-bandwidth 1K --stall-timeout 3
expect_text err "get no nearer for 3 s (--stall-timeout)"
as_before 0x17
expect 1 drover set vm --max-bandwidth 0
expect_text err "no migration is running"

echo "# the destination's disk is full"
if [[ $(id -u) == 0 ]]; then
    mkdir -p b/images/vm
    mount -t tmpfs -o size=20M none b/images/vm
    on_exit eval "umount $tmp/b/images/vm 2>/dev/null"
    expect 1 "${command[@]}"
    umount b/images/vm
    rmdir b/images/vm 2>/dev/null || [[ ! -e b/images/vm ]] # the guardian may have seen to it
    expect_text err "No space left on device"
    as_before 0x19
fi

echo "# fenced, and then not promoted: a wrong token; an agent that ends just there"
# The coordinator's words go through the filter on their way to the agent.
cat >through <<SH
#!/bin/bash
sed -u "\$(cat $tmp/filter)" | $tmp/at "\$@"
SH
chmod +x through
filtered=("${bare[@]}" --rsh "$tmp/through")
echo '/"method":"promote"/s/"token":"[0-9a-f]\{4\}/"token":"beef/' >filter
expect 1 "${filtered[@]}"
expect_text err "goes on here as before"
as_before 0x1a
[[ -e $disk ]] || fail "the image was set aside"
echo '/"method":"promote"/Q' >filter
expect 1 "${filtered[@]}"
expect_text err "goes on here as before"
as_before 0x1b

echo "# the agent is gone and can't be asked: status 3, until somebody can ask"
cat >once <<SH
#!/bin/bash
[[ ! -e $tmp/asked ]] || exit 1
touch $tmp/asked
exec $tmp/through "\$@"
SH
chmod +x once
expect 3 "${bare[@]}" --rsh "$tmp/once"
expect_text err "drover recover vm"
[[ $(drover ctl vm/root status | jq -r .role) == fenced ]] || fail "it let go of the fence"
[[ -e b/images/vm/root.img ]] || fail "a whole image was removed, and nobody knows that the source lives"
expect 3 "${bare[@]}" --rsh "$tmp/at" # which asks as the journal says
expect 3 drover recover vm
expect 0 drover recover vm b --rsh "$tmp/at"
expect_text out "goes on here"
as_before 0x1c
expect 0 drover recover vm
expect_text out "nothing is to be recovered"

echo "# the source's disk fails while it is read"
truncate -s 64M bad.img
dd if=/dev/urandom of=bad.img bs=1M count=32 conv=notrunc status=none
background nbdkit -f -U "$tmp/bad.sock" --filter=error file bad.img error-pread=EIO \
    error-pread-rate=100% error-file="$tmp/trigger"
wait_for 10 test -S bad.sock
printf 'name = "bad"\nhypervisor = "none"\n[[disk]]\nname = "root"\nuri = "nbd+unix:///?socket=%s"\n' \
    "$tmp/bad.sock" >a/vm.d/bad.toml
drover serve bad
touch trigger
expect 1 drover migrate bad b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach
rm trigger
expect_text err "disk root"
[[ ! -e b/images/bad ]] || fail "left behind: $(find b)"
expect 0 drover migrate bad b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach
"$tmp/at" b drover serve --stop bad
cmp bad.img b/images/bad/root.img
drover serve --stop bad

echo "# and then it works"
cp $disk before.img
expect 0 "${command[@]}"
"$tmp/at" b drover serve --stop vm
cmp before.img b/images/vm/root.img
drover serve --stop vm
