#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# selftest.sh BUILD-FOLDER: the lab without drover. QEMU migrates the guest's memory between the sites,
# while both of them use the same nbdkit: the guest, its client and the checks must find that
# nothing was lost, and the checks must notice when something is.
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
set -Eeuo pipefail
# shellcheck disable=SC2034 # lab.sh uses it
LAB_BUILD=$(readlink -f "${1:?usage: selftest.sh BUILD-FOLDER}")
LAB=$(mktemp -d /tmp/lab-selftest.XXXXXX)
trap 'echo "selftest.sh: line $LINENO failed" >&2' ERR
trap 'lab_down' EXIT
# shellcheck source=test/lab/lab.sh
. "$(dirname "$(readlink -f "$0")")/lab.sh"

fail() { echo "selftest.sh: $*" >&2; exit 1; }
expect_failure() { ! "$@" >/dev/null 2>&1 || fail "should have failed: $*"; }

migration_is() { [ "$(lab_monitor src query-migrate | jq -r .status)" = "$1" ]; }

# knock: ms until the other site refuses a connection; "cut" if it does not within a second
knock() {
  local from=${EPOCHREALTIME/[.,]/} status=0
  lab_sites in src timeout 1 bash -c '</dev/tcp/10.8.0.2/1' 2>/dev/null || status=$?
  [ $status = 124 ] && echo cut || echo $(((${EPOCHREALTIME/[.,]/} - from) / 1000))
}

lab_up
[ "$(knock)" -ge 40 ] || fail "the WAN link has no delay"
lab_sites link delay=150 >/dev/null
[ "$(knock)" -ge 300 ] || fail "the WAN link's delay does not change"
lab_sites link cut=1 >/dev/null
[ "$(knock)" = cut ] || fail "the WAN link is not cut"
expect_failure lab_sites link cut=0 delay=x
[ "$(lab_sites link ab.rate=100 | jq -c '[.ab.cut, .ab.rate, .ba.rate]')" = "[1,100,200]" ] ||
  fail "a bad setting was half applied, or a good one not: $(lab_sites link)"
lab_sites link cut=0 delay=20 rate=200 >/dev/null

lab_make_vm vm1 root=128M:8 data=64M
for disk in root data; do
  "$LAB/at" src nbdkit --exit-with-parent -f -U "$LAB/$disk.sock" -P "$LAB/$disk.pid" \
    file "$LAB/src/images/vm1/$disk.img" &
  lab_wait 5 test -s "$LAB/$disk.pid" || fail "nbdkit does not start"
done
sockets=("$LAB/root.sock" "$LAB/data.sock")
lab_start_guest vm1 src "${sockets[@]}" -- rec_rate=100 dirty=8 dirty_rate=4
lab_start_client
lab_wait_acknowledged 50
lab_fetch | grep -q Hello || fail "the guest's HTTP server does not answer"

lab_start_qemu vm1 dst destination "rec_rate=100 dirty=8 dirty_rate=4" "${sockets[@]}"
lab_monitor dst migrate-set-capabilities '{"capabilities": [{"capability": "late-block-activate", "state": true}]}' >/dev/null
lab_monitor dst migrate-incoming '{"uri": "tcp:10.8.0.2:4444"}' >/dev/null
lab_monitor src migrate-set-capabilities '{"capabilities": [{"capability": "pause-before-switchover", "state": true}]}' >/dev/null
lab_monitor src migrate '{"uri": "tcp:10.8.0.2:4444"}' >/dev/null
lab_wait 60 migration_is pre-switchover || fail "no switchover: $(lab_monitor src query-migrate)"
for disk in root data; do cp --sparse=always "$LAB/src/images/vm1/$disk.img" "$LAB/$disk.before"; done
lab_monitor src migrate-continue '{"state": "pre-switchover"}' >/dev/null
lab_wait 30 migration_is completed || fail "not completed: $(lab_monitor src query-migrate)"
lab_monitor dst cont >/dev/null
lab_sites route dst
lab_monitor src quit >/dev/null
lab_wait_acknowledged 100
lab_stop_client
cat "$LAB/client.json"
lab_poweroff dst

# The client's last number may be older than the last record; never newer.
acknowledged=$(lab_acknowledged)
for disk in root data; do
  image=$LAB/src/images/vm1/$disk.img
  lab_check_records "$image" "$acknowledged"
  log=$LAB/dst/writes-0.log
  [ $disk = root ] || log=$LAB/dst/writes-1.log
  lab_check_switchover "$LAB/$disk.before" "$log" "$image"
  # What was on the disk at the switchover is consistent as well, but lacks what came later.
  lab_check_records "$LAB/$disk.before" 50
  expect_failure lab_check_records "$LAB/$disk.before" "$acknowledged"
done
expect_failure lab_check_records "$LAB/src/images/vm1/root.img" $((acknowledged + 1000))
# A byte inside an acknowledged record, and one at the end that nothing in the guest has written.
block=$(/sbin/debugfs -R "bmap /records 40" "$LAB/src/images/vm1/root.img" 2>/dev/null)
block_size=$(/sbin/debugfs -R stats "$LAB/src/images/vm1/root.img" 2>/dev/null | awk '/^Block size:/ { print $3 }')
printf x | dd of="$LAB/src/images/vm1/root.img" bs=1 seek=$((block * block_size + 100)) conv=notrunc status=none
expect_failure lab_check_records "$LAB/src/images/vm1/root.img" "$acknowledged"
printf x | dd of="$LAB/data.before" bs=1 seek=$((64 * 1048576 - 1)) conv=notrunc status=none
expect_failure lab_check_switchover "$LAB/data.before" "$LAB/dst/writes-1.log" "$LAB/src/images/vm1/data.img"

lab_down
[ ! -e "$LAB" ] || fail "$LAB is left"
echo "selftest.sh: passed"
