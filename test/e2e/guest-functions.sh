# SPDX-License-Identifier: GPL-2.0-or-later
# For the tests with a real guest in the lab (test/lab/lab.sh), which is put away at their end; to be sourced after
# functions.sh.
#   at SITE COMMAND...
#   agents_over_link      ./rsh leads to agents at dst over the WAN link, as ssh would: HOST drover agent --stdio
#   of the VM $vm: guardian_pid, role_at SITE, guest_state SITE, runs_at SITE, is_over (its migration, and nobody is
#   at it any more), leftovers (processes at dst), clean_at_dst
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

agents_over_link() {
    command -v socat >/dev/null || skip "there is no socat"
    cat >rsh <<SH
#!/bin/bash
exec "$LAB/at" src socat - TCP:10.8.0.2:2222
SH
    chmod +x rsh
    background "$LAB/at" dst socat TCP-LISTEN:2222,bind=10.8.0.2,reuseaddr,fork EXEC:"drover agent --stdio" 2>socat.log
}

guardian_pid() { pgrep -f "guardian $LAB/src/vm.d/$vm.toml" | head -n 1; }
role_at() { at "$1" drover status "$vm" --json 2>/dev/null | jq -r '[.vms[0].disks[]?.record.role // empty] | unique | join("+")'; }
guest_state() { timeout 10 "$LAB_BUILD/test/lab/lab-client" qmp "$LAB/$1/monitor" query-status 2>/dev/null | jq -r .status; }
runs_at() { [[ $(guest_state "$1") == running ]]; }
is_over() { tail -n 1 "$LAB/src/state/$vm/journal" | grep -q '"step":"over"' && [[ -z $(guardian_pid) ]]; }
# At the destination, beside the server of its agents.
leftovers() { ip netns pids "$(lab_sites netns dst)" | xargs -r ps -o comm= -p | grep -E 'nbdkit|qemu|drover'; }
clean_at_dst() { ! leftovers >/dev/null; }

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
