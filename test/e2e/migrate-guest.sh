#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A real guest with two disks moves over the WAN link while it writes and a client is connected: first
# all that can go wrong before the fence, after each of which it goes on at the source and the
# destination is clean; then for good.
# test: timeout=600
# test: slow
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"

lab_up
lab_make_vm vm root=256M:32 data=96M
disk_control() { "$LAB/at" src drover ctl vm/root "$@"; }
"$LAB/at" src drover serve vm
# start_guest [WORD...]: to its kernel
start_guest() {
    lab_start_guest vm src "$LAB/src/run/vm/root.sock" "$LAB/src/run/vm/data.sock" -- rec_rate=50 "$@"
    wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
    lab_start_client
    lab_wait_acknowledged 20
}

command=("$LAB/at" src drover migrate vm dst --rsh "$LAB/at" --data-address 10.8.0.2)

# start WORD...: in the background
start() {
    rm -f out err
    # "at" becomes drover by exec: the pid is the coordinator's
    "${command[@]}" --json "$@" >out 2>err &
    migration=$!
}
in_phase() { grep -q "\"phase\":\"$1\"" out 2>/dev/null; }
status=0
finish() {
    status=0
    wait "$migration" || status=$?
    ((status == $1)) || {
        cat out err "$LAB"/dst/state/vm/*.log >&2
        fail "exit status $status, not $1"
    }
}
guest_state() { lab_monitor "$1" query-status | jq -r .status; }
ours_at_dst() { ip netns pids "$(lab_sites netns dst)" | xargs -r ps -o comm= -p | grep -E 'nbdkit|qemu|drover'; }
clean_at_dst() { ! ours_at_dst >/dev/null; }

# The guest runs on at the source, and nothing is left at the destination but the record of it.
as_before() {
    [[ $(guest_state src) == running ]] || fail "the guest is $(guest_state src)"
    lab_wait_acknowledged 20
    [[ $(disk_control status | jq -r '.role, (.replication | tostring)' | paste -sd ' ') == "owner null" ]] ||
        fail "$(disk_control status)"
    wait_for 10 clean_at_dst
    [[ ! -e $LAB/dst/images/vm ]] || fail "an image is left at the destination"
}

echo "# a VM that does not use the disks; then it does, and its memory does not converge"
start
finish 1
expect_text err "nobody uses disk"
start_guest dirty=24 dirty_rate=60
start --max-bandwidth 2M --converge-timeout 15
finish 1
expect_text err "(--converge-timeout)"
as_before
start --stall-timeout 6
finish 1
expect_text err "the memory does not converge: it gets no nearer for 6 s (--stall-timeout)"
as_before

echo "# the guest powers itself off while its memory goes"
start --max-bandwidth 8M
wait_for 120 in_phase memory
lab_poweroff src
finish 1
expect_text err "the guest has powered itself off; its disks stay here"
[[ $(disk_control status | jq -r '.role, (.replication | tostring)' | paste -sd ' ') == "owner null" ]]
wait_for 10 clean_at_dst
lab_stop_client || true
start_guest

echo "# aborted while the memory goes: Ctrl-C, then drover abort"
start --max-bandwidth 8M
wait_for 120 in_phase memory
lab_wait_acknowledged 10
kill -INT "$migration"
finish 1
expect_text err "goes on here as before"
as_before
start --max-bandwidth 8M
wait_for 120 in_phase memory
"$LAB/at" src drover abort vm
finish 1
as_before

echo "# the destination's QEMU dies while the memory goes"
start --max-bandwidth 8M
wait_for 120 in_phase memory
wait_for 20 grep -q '"remaining_bytes":[1-9]' out
kill -9 "$(lab_guest_pids dst)"
finish 1
expect_text err "QEMU has ended"
as_before

echo "# the coordinator is killed: the agent cleans up; the next migration takes the rest back"
start --max-bandwidth 8M
wait_for 120 in_phase memory
wait_for 20 grep -q '"remaining_bytes":[1-9]' out
kill -9 "$migration"
wait "$migration" || true
wait_for 30 clean_at_dst
lab_wait_acknowledged 10

echo "# the link is cut"
start --max-bandwidth 8M
wait_for 120 in_phase memory
lab_sites link cut=1 >/dev/null
sleep 1
kill -TERM "$migration" # the operator has seen enough
finish 1
lab_sites link cut=0 >/dev/null
as_before

echo "# a machine that is not the same: found when the source has sent everything, before the fence"
cp "$LAB/dst/drover.toml" drover.toml
sed -i '/^nic-arguments/d' "$LAB/dst/drover.toml"
start
finish 1
in_phase fencing && fail "it fenced a disk without a VM that could use it"
# Not `completed`: the destination's end was seen before the last of the state was sent.
status=$(lab_monitor src query-migrate | jq -r .status)
[[ $status =~ ^(completed|failed|cancelling|cancelled)$ ]] || fail "not what was to be tested: the memory's migration is $status"
as_before # QEMU has taken the disks back
cp drover.toml "$LAB/dst/drover.toml"

echo "# for good"
start
finish 0
jq -e 'select(.event=="report") | .result == "done" and (.downtime_ms | type) == "number" and (.disks | length) == 2' out >/dev/null ||
    fail "the report: $(cat out)"
jq -c 'select(.event=="report") | {total_ms, downtime_ms, downtime, bytes_sent}' out
lab_no_guest src || fail "the guest's old QEMU is still there"
lab_wait_acknowledged 50
lab_stop_client
jq -c . "$LAB/client.json"
acknowledged=$(lab_acknowledged)
lab_poweroff dst
"$LAB/at" dst drover serve vm --stop
lab_check_records "$(lab_image dst vm root)" "$acknowledged" >/dev/null
index=0
for disk in root data; do
    fenced=$(compgen -G "$(lab_image src vm $disk).fenced-*") || fail "the image of $disk is not set aside"
    lab_check_switchover "$fenced" "$LAB/dst/writes-$index.log" "$(lab_image dst vm $disk)" >/dev/null
    index=$((index + 1))
done
