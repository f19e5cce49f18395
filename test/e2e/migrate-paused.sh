#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A VM that is paused when it is migrated arrives paused; aborted, it is paused at the source and can be
# migrated again. One disk. And of memory whose writes this QEMU may lose it is warned before.
# test: slow asan
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"
LAB_MEMORY=256M # all is well while the guest is paused

lab_up
lab_make_vm vm root=64M:8
"$LAB/at" src drover serve vm
lab_start_guest vm src "$LAB/src/run/vm/root.sock" -- rec_rate=50
wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
lab_start_client
lab_wait_acknowledged 10
lab_stop_client
guest_state() { lab_monitor "$1" query-status | jq -r .status; }
lab_monitor src stop >/dev/null

migrate() { "$LAB/at" src drover migrate vm dst --rsh "$LAB/at" --data-address 10.8.0.2 "$@"; }
cp "$LAB/dst/drover.toml" drover.toml
sed -i '/^nic-arguments/d' "$LAB/dst/drover.toml" # can't be loaded there
expect 1 migrate
[[ $(guest_state src) == paused ]] || fail "after the failure the guest is $(guest_state src)"
cp drover.toml "$LAB/dst/drover.toml"

expect 0 migrate 2>err
qemu=$(lab_monitor dst query-version | jq .qemu.major)
((qemu >= 9)) || grep -q 'loses track of some of what a guest writes.*-m 262152K' err || fail "no warning: $(cat err)"
[[ $(guest_state dst) == paused ]] || fail "it arrived $(guest_state dst)"
lab_no_guest src || fail "the old QEMU is still there"
lab_monitor dst cont >/dev/null
lab_start_client
lab_wait_acknowledged 10
lab_stop_client
lab_poweroff dst
"$LAB/at" dst drover serve vm --stop
