# SPDX-License-Identifier: GPL-2.0-or-later
# For the tests with a real guest in the lab (test/lab/lab.sh), which is put away at their end; to be sourced after
# functions.sh.
#   at SITE COMMAND...
#   one_disk_guest_up     the lab, with the VM vm of one disk and a [tunnel] at each site, runs at src, and its client
# shellcheck shell=bash
requires drover nbdkit qemu-system-x86_64 jq ip nft busybox
[[ $(id -u) == 0 ]] || skip "network namespaces need root"

# shellcheck disable=SC2034 # both are lab.sh's
LAB_BUILD=$DROVER_BUILD LAB=$tmp/lab
mkdir lab
# shellcheck source=test/lab/lab.sh
source "$e2e_top/test/lab/lab.sh"
on_exit lab_down

at() { "$LAB/at" "$@"; }

one_disk_guest_up() {
    lab_up
    # shellcheck disable=SC2034 # lab.sh's
    LAB_NETWORK=tunnel
    lab_make_vm vm root=64M:8
    lab_sites route src
    at src drover serve vm >/dev/null
    lab_start_guest vm src "$LAB/src/run/vm/root.sock" -- rec_rate=50
    wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
    lab_start_client
    lab_wait_acknowledged 20
}
