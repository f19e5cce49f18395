#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A real guest moves over the WAN link, the coordinator's words to its agent as well; each process of either side,
# QEMU among them, is killed at each step around the switchover, and the link is cut, or lost for good. After each: the guest runs at one
# site, or at none because its QEMU was killed, and then its disks are owned by one site where it can be started
# again; every record that it acknowledged is there, its client's connection has lasted unless QEMU was killed, nothing
# is left behind, and the next migration works.
#   kill-guest.sh [--all] [CASE...]     without --all: some that no test without a guest has; CASE: STEP/VICTIM
# test: timeout=900 release
# test: slow
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"

cases=(source.handover/hypervisor source.handover/silent source.fence/hypervisor source.promote/lost-site
    source.promote/new-hypervisor destination.promote/agent)
if [[ ${1:-} == --all ]]; then
    shift
    cases=()
    for step in source.handover source.fence source.promote destination.promote source.finish; do
        for victim in coordinator agent guardian source destination hypervisor new-hypervisor link long-link silent; do
            cases+=("$step/$victim")
        done
    done
    cases+=(source.promote/lost-site)
fi
[[ $# == 0 ]] || cases=("$@")

lab_up
agents_over_link

# ---- who is who

serves() { jq .pid "$LAB/$1/run/$vm/root.json" 2>/dev/null; }
victim_pid() {
    case $1 in
        coordinator) echo "$coordinator" ;;
        agent) pgrep -f '^drover agent --stdio' | while read -r pid; do
            if [[ $(ip netns identify "$pid") == "$(lab_sites netns dst)" ]]; then echo "$pid"; fi
        done ;;
        guardian) guardian_pid ;;
        source) serves src ;;
        destination) serves dst ;;
        hypervisor) lab_guest_pids src ;;
        new-hypervisor) lab_guest_pids dst ;;
    esac
}

wait_until_over() {
    local end=$((SECONDS + 150))
    until is_over; do
        ((SECONDS < end)) || fail "not recovered: $(cat out err "$LAB/src/state/$vm/guardian.log")"
        # Nobody is left but the operator.
        if [[ -z $(guardian_pid) ]]; then
            at src drover recover "$vm" >recover.out 2>&1 || true
        fi
        sleep 0.2
    done
}

options=(--rsh "$tmp/rsh" --data-address 10.8.0.2)

number=0
# run_case STEP VICTIM
run_case() {
    local step=$1 victim=$2 owner status=0 acknowledged started
    vm=vm$((++number))
    rm -f "$LAB"/*/console.log "$LAB"/*/monitor "$LAB"/*/qmp
    lab_sites route src
    lab_make_vm $vm root=64M:8 data=48M
    at src drover serve $vm >/dev/null
    lab_start_guest $vm src "$LAB/src/run/$vm/root.sock" "$LAB/src/run/$vm/data.sock" -- rec_rate=50
    wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
    lab_start_client
    lab_wait_acknowledged 10

    stop_at "$step"
    # "at" becomes drover by exec: the pid is the coordinator's
    "$LAB/at" src drover migrate $vm dst "${options[@]}" >out 2>err &
    coordinator=$!
    reached "$step" 120
    case $victim in
        link | long-link | lost-site) lab_sites link cut=1 >/dev/null ;;
        # Nobody is there to resume the guest, and its QEMU answers nobody.
        silent) kill -STOP "$(lab_guest_pids src)" && kill_victim coordinator ;;
        *) kill_victim "$victim" ;;
    esac
    go_on "$step"
    case $victim in
        link) sleep 5 && lab_sites link cut=0 >/dev/null ;;
        silent)
            # More often than its monitor's queue has room for.
            silences() { (($(grep -c "its hypervisor does not answer" "$LAB/src/state/$vm/guardian.log" || true) >= 4)); }
            wait_for 120 silences
            [[ $(tail -n 1 "$LAB/src/state/$vm/journal") != *'"step":"over"'* ]] || fail "over, and the guest does not run"
            kill -CONT "$(lab_guest_pids src)"
            ;;
        long-link) sleep 75 && lab_sites link cut=0 >/dev/null ;; # an agent waits for a minute
    esac
    wait $coordinator 2>/dev/null || status=$?
    if [[ $victim == lost-site ]]; then
        # The operator knows it, and the guest goes on here at once, whatever QEMU still waits for.
        expect 0 at src drover recover $vm --i-know-the-other-side-is-dead
        wait_for 10 runs_at src
        lab_sites link cut=0 >/dev/null
        at src drover recover $vm >out 2>err || fail "recover: $(cat out err)"
    fi
    wait_until_over

    case "$(role_at src) $(role_at dst)" in
        "owner replica" | "owner ") owner=src ;;
        "fenced owner") owner=dst ;;
        *) fail "owners: $(role_at src), $(role_at dst)" ;;
    esac
    if [[ $victim == *hypervisor ]] && ! runs_at $owner; then
        lab_no_guest src && { [[ $owner == src ]] || lab_no_guest dst; } ||
            fail "a QEMU is left: $(guest_state src) $(guest_state dst)"
        lab_stop_client 2>/dev/null || true
        acknowledged=$(lab_acknowledged)
        # The operator's turn: the guest starts again from the owner's disks.
        rm -f "$LAB"/*/monitor "$LAB"/*/qmp
        lab_sites route $owner
        lab_start_guest $vm $owner "$LAB/$owner/run/$vm/root.sock" "$LAB/$owner/run/$vm/data.sock" -- rec_rate=50
        started=yes
        lab_start_client
        lab_wait_acknowledged 1
        (($(lab_acknowledged) > acknowledged)) || fail "the guest has lost records: $(lab_acknowledged), not $acknowledged"
    else
        wait_for 30 runs_at $owner
        started=no
    fi
    lab_wait_acknowledged 20
    if [[ $owner == src ]]; then
        wait_for 30 clean_at_dst
        [[ ! -e $LAB/dst/images/$vm ]] || fail "an image is left at the destination"
        at src drover migrate $vm dst "${options[@]}" >out 2>err || fail "the next migration: $(cat out err)"
        lab_wait_acknowledged 20
    else
        lab_no_guest src || fail "the old QEMU is still there"
    fi
    [[ "$(role_at src) $(role_at dst)" == "fenced owner" ]] || fail "owners: $(role_at src), $(role_at dst)"
    lab_stop_client || fail "its client's connection broke"
    acknowledged=$(lab_acknowledged)
    lab_poweroff dst
    at dst drover serve $vm --stop >/dev/null
    at src drover serve $vm --stop >/dev/null
    lab_check_records "$(lab_image dst $vm root)" "$acknowledged" >/dev/null
    clean_at_dst || fail "left at the destination: $(leftovers)"
    rm -rf "$LAB"/*/{images,state,run}/$vm "$LAB/src/vm.d/$vm.toml"
    printf '%-20s %-15s status %d, owner %s%s\n' "$step" "$victim" $status $owner "$([[ $started == no ]] || echo ", started again")"
}

for case in "${cases[@]}"; do
    run_case "${case%/*}" "${case#*/}"
done
