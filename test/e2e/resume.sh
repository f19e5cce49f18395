#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A migration outlives the processes that serve its disks: each side's nbdkit is killed while the disk is copied, again
# and again. The client writes on and loses nothing; what the destination has durably is not sent again; both images are
# the same at the end. One that can't be started any more ends the migration, and the client stays where it is.
# test: timeout=200
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/writer-functions.sh
source "$e2e_top/test/e2e/writer-functions.sh"
requires drover nbdkit qemu-io jq

# An nbdkit that does not start where there is a file that says so.
mkdir wrap
cat >wrap/nbdkit <<SH
#!/bin/bash
[[ ! -e \${DROVER_STATE%/state}/broken ]] || { echo "it is broken" >&2; exit 1; }
exec $(command -v nbdkit) "\$@"
SH
chmod +x wrap/nbdkit
PATH=$tmp/wrap:$PATH

site b 'listen = "127.0.0.1"' 'ports = "22239-22259"'
site a 'listen = "127.0.0.1"' 'ports = "22209-22229"'
ways_to_sites "$tmp/at"
megabytes=48
truncate -s 80M a/images/root.img
dd if=/dev/urandom of=a/images/root.img bs=1M seek=16 count=$megabytes conv=notrunc status=none
printf 'name = "vm"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/root.img" >a/vm.d/vm.toml
drover serve vm >/dev/null
pause=0.02
start_writer "$tmp/a/run/vm/root.sock"

serves() { jq .pid "$1/run/vm/root.json" 2>/dev/null; }
replication() { drover ctl vm/root status 2>/dev/null | jq ".replication.$1 // 0"; }
left() { replication 'dirty_bytes'; }
# Some of the disk is there, more than before.
copied() {
    local now
    now=$(left)
    [[ $now -gt 0 && $now -le $1 ]]
}
is_another() {
    local now
    now=$("$tmp/at" "$1" drover ctl vm/root status 2>/dev/null | jq .pid) || return 1
    [[ -n $now && $now != "$2" ]]
}
has_flushed() { [[ $(replication durable) -gt 0 ]]; }
# killed SIDE...: all at once
killed() {
    local -A was
    local side
    for side; do
        was[$side]=$(serves "$side")
    done
    kill -9 "${was[@]}"
    local end=$((SECONDS + 20))
    for side; do
        until is_another "$side" "${was[$side]}"; do
            ((SECONDS < end)) || fail "$side's is not started again: $(cat out err)"
            sleep 0.02
        done
    done
}
client_goes_on() {
    local end=$((SECONDS + 20)) before
    before=$(acknowledged)
    until has_acknowledged $((before + 3)); do
        ((SECONDS < end)) || fail "the client waits: $(cat out err; drover ctl vm/root status)"
        sleep 0.05
    done
}
started() {
    drover migrate vm b --data-address 127.0.0.1 --rsh "$tmp/at" --disk-only --detach --max-bandwidth "$1" >out 2>err &
    migration=$!
    on_exit e2e_kill $migration
    wait_for 30 copied $(((megabytes - 4) << 20))
}
ended() {
    local status=0
    wait $migration || status=$?
    ((status == $1)) || fail "exit status $status, not $1: $(cat out err)"
}

echo "# one that does not start any more"
for side in b a; do
    started 4M
    touch $side/broken
    kill -9 "$(serves $side)"
    if [[ $side == b ]]; then
        ended 1
    else
        ended 3 # what the disk's record is to say of it can't be written
    fi
    expect_text err "it is broken"
    rm $side/broken
    expect 0 drover recover vm
    client_goes_on
    [[ ! -e b/images/vm ]] || fail "left behind: $(find b/images)"
done

echo "# the source's, the destination's, both"
started 1M # so slow that much is left at the last of it
left=44
for sides in a b a b "a b"; do
    wait_for 60 copied $(((left -= 4) << 20))
    wait_for 20 has_flushed # else the destination has nothing for certain
    # shellcheck disable=SC2086
    killed $sides
    [[ $sides == "a b" ]] || client_goes_on
done
drover set vm --max-bandwidth 0
ended 0
[[ $(grep -c 'its nbdkit has ended' err) == 6 ]] || fail "it does not say so: $(cat err)"
stop_writer
drover serve --stop vm >/dev/null
"$tmp/at" b drover serve --stop vm >/dev/null
check_writes b/images/vm/root.img
cmp a/images/root.img.fenced-* b/images/vm/root.img || fail "the images differ"
# What was in flight when a process died is sent again, and what it had not flushed; not the rest.
captured=$(jq '.disks[0].captured_bytes' a/state/vm/last-migration.json)
((captured * 2 <= (megabytes << 20) * 3)) || fail "$captured bytes were copied of $megabytes MiB"
