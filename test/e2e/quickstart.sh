#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The quickstart as a user runs it: interrupted, killed, to its end with --keep, and --clean. Nothing of it
# is left, whichever way it ends. It installs nothing here.
# test: timeout=400 release
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires qemu-system-x86_64 jq
[[ $(id -u) == 0 && -c /dev/net/tun ]] || skip "network namespaces need root and /dev/net/tun"
[[ $DROVER_BUILD == "$e2e_top/build" ]] || skip "the quickstart runs what is in build/"
ls /boot/vmlinuz-*-cloud-amd64 >/dev/null 2>&1 || [[ -d $e2e_top/build/guest-kernel/lib ]] || skip "no kernel for the guest is here"

export DROVER_LAB_PREFIX=quick-$$
labs() { compgen -G '/tmp/drover-quickstart.*' || true; }
labs >before
new_labs() { labs | comm -13 before -; }
nothing_left() {
    local lab
    [[ -z $(new_labs) ]] || fail "left in /tmp: $(new_labs)"
    ! ip netns list | grep -q "^$DROVER_LAB_PREFIX" || fail "namespaces are left: $(ip netns list)"
    for lab in "${seen[@]}"; do
        ! pgrep -af "$lab" || fail "processes are left"
    done
}
on_exit "$e2e_top/quickstart" --clean
seen=()

# begin OPTION...: in the background, its pid in $quick
begin() {
    : >quick.out # not by whoever runs it, who may be later than the first look
    # A shell ignores SIGINT in what it starts in the background.
    setsid env --default-signal=INT "$e2e_top/quickstart" --no-install "$@" >>quick.out 2>&1 &
    quick=$!
}
tells() { grep -q -- "$1" quick.out || ! kill -0 "$quick" 2>/dev/null; }
interrupt() { # SIGNAL STATUS TEXT-TO-WAIT-FOR
    local status=0
    begin
    wait_for 120 tells "$3"
    mapfile -t seen < <(new_labs)
    [[ ${#seen[@]} == 1 ]] || fail "no lab, or many: ${seen[*]}; $(cat quick.out)"
    kill -"$1" "$quick"
    wait "$quick" || status=$?
    ((status == $2)) || fail "exit status $status after SIG$1, not $2: $(cat quick.out)"
}

echo "# Ctrl-C while the sites are made, SIGTERM while it migrates"
interrupt INT 130 'and a guest at the first'
expect_text quick.out "Nothing is left running"
nothing_left
interrupt TERM 143 '\] copy'
expect_text quick.out "Nothing is left running"
nothing_left

echo "# killed while it migrates; the next one, with --keep, goes to its end; --clean"
interrupt KILL 137 '\] copy'
[[ -n $(new_labs) ]] || fail "kill -9 left nothing: then this test sees nothing"
begin --keep
wait "$quick" || fail "status $?: $(cat quick.out)"
expect_text quick.out "which an earlier run left"
expect_text quick.out "none of"
expect_text quick.out "longest silence of its client"
expect_text quick.out "tunnel vm1.nic0: home, diverted, link up"
expect_text quick.out "The lab is still up"
mapfile -t seen < <(new_labs)
[[ ${#seen[@]} == 1 ]] || fail "not one lab is up: ${seen[*]}"
[[ $("${seen[0]}/at" dst drover status --json | jq -r '.vms[0].disks[0].status.role') == owner ]] ||
    fail "the disk is not served at the second site"
expect 0 "$e2e_top/quickstart" --clean
nothing_left
