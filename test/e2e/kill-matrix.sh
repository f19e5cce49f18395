#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Each process of a migration is killed at each step that is written into a journal, and so are those that
# recover; or the file system of a site, with the images and what drover writes, runs full there. The same when the first frame of each type has come
# to the destination, and when it is applied and not answered. After each: one side owns both disks, every write that was flushed and answered is there, nothing is left
# behind, and the next migration works.
#   kill-matrix.sh [--all] [CASE...]     without --all: the steps around the switchover; CASE: STEP/VICTIM, or frame.TYPE/VICTIM
#                                        and applied.TYPE/VICTIM
# test: timeout=600 release
# test: slow
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
# shellcheck source=test/e2e/writer-functions.sh
source "$e2e_top/test/e2e/writer-functions.sh"
requires drover nbdkit qemu-io jq

all=no
[[ ${1:-} != --all ]] || { all=yes; shift; }
wanted=("$@")

# Each site has a file system of its own, which can run full.
mkdir a b
for side in a b; do
    on_exit e2e_unmount "$tmp/$side"
    mount -t tmpfs -o size=192M "site $side" $side || skip "a tmpfs can't be mounted here"
done
site b 'listen = "127.0.0.1"' 'ports = "22039-22069"'
site a 'listen = "127.0.0.1"' 'ports = "22009-22029"'
ways_to_sites "$tmp/at"
# ---- who is who

serves() { jq .pid "$tmp/$1/run/$vm/root.json" 2>/dev/null; }
guardian_pid() { pgrep -f "guardian $tmp/a/vm.d/$vm.toml" | head -n 1; }
victim_pid() {
    case $1 in
        coordinator) echo $coordinator ;;
        agent) pgrep -P $coordinator -f 'agent --stdio' ;;
        guardian) guardian_pid ;;
        source) serves a ;;
        destination) serves b ;;
    esac
}
role_at() { { "$tmp/at" "$1" drover status "$vm" --json 2>/dev/null || true; } | jq -r "[.vms[0].disks[]?.record.role // empty] | unique | join(\"+\")"; }
is_over() { tail -n 1 "$1/state/$vm/journal" | grep -q '"step":"over"'; }
ours() { pgrep -f "$tmp.*$vm|$tmp.*agent" | while read -r pid; do [[ $(cut -d ' ' -f 3 "/proc/$pid/stat" 2>/dev/null) == [ZX] ]] || echo "$pid"; done; }
none_but_disks() { # of the owner, and of the source, which may wait for its client
    local pid
    for pid in $(ours); do
        [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) =~ ^(nbdkit|qemu-io|$) || $pid == "$writer_pid" ]] || return 1
    done
}

migrate=(drover migrate --data-address 127.0.0.1 --rsh "$tmp/at" --disk-only --detach)

number=0
new_vm() {
    local disk
    vm=vm$((++number))
    printf 'name = "%s"\nhypervisor = "none"\n' $vm >a/vm.d/$vm.toml
    for disk in root data; do
        truncate -s 16M a/images/$vm-$disk.img
        fallocate -l 9M a/images/$vm-$disk.img # the client's writes have room
        dd if=/dev/urandom of=a/images/$vm-$disk.img bs=1M seek=12 count=2 conv=notrunc status=none
        printf '[[disk]]\nname = "%s"\nfile = "%s"\n' $disk "$tmp/a/images/$vm-$disk.img" >>a/vm.d/$vm.toml
    done
    drover serve $vm >/dev/null
    start_writer "$tmp/a/run/$vm/root.sock"
}

# Everything as it has to be, whatever happened; and then the next migration.
check_all() {
    local disk image before
    local end=$((SECONDS + 60))
    until is_over a && none_but_disks; do
        ((SECONDS < end)) || fail "not recovered: $(cat out err a/state/$vm/guardian.log)"
        # Its guardian is dead as well: the operator's turn.
        if [[ $by_hand == yes && -z $(guardian_pid) ]]; then
            expect 0 drover recover $vm
        fi
        sleep 0.05
    done
    case "$(role_at a) $(role_at b)" in
        "owner replica" | "owner ") owner=a ;;
        "fenced owner") owner=b ;;
        *) fail "owners: $(role_at a), $(role_at b)" ;;
    esac
    if [[ $owner == a ]]; then
        before=$(acknowledged)
        wait_for 10 has_acknowledged $((before + 3)) # the client goes on
        [[ ! -e b/images/$vm ]] || fail "left behind: $(find b/images)"
        [[ ! -e b/run/$vm ]] || fail "left behind: $(find b/run)"
    else
        is_over b || fail "the destination's journal: $(cat b/state/$vm/journal)"
        [[ $("$tmp/at" b drover ctl $vm/root status | jq -r .stage) == over ]] || fail "not finished at b"
    fi
    ! grep -qs migration "$tmp"/?/state/$vm/*/psk || fail "keys are left: $(grep . "$tmp"/?/state/$vm/*/psk)"
    [[ ! -e a/run/$vm/migrate.sock && ! -e a/state/$vm/root/stream-psk ]] || fail "left behind: $(find a/run/$vm a/state/$vm)"

    # The next one: to b where it is still here. Its image then has all that was answered.
    if [[ $owner == a ]]; then
        drover migrate $vm b --data-address 127.0.0.1 --rsh "$tmp/at" --disk-only --detach >out 2>err ||
            fail "the next migration: $(cat out err)"
        [[ "$(role_at a) $(role_at b)" == "fenced owner" ]] || fail "owners: $(role_at a), $(role_at b)"
    fi
    stop_writer
    "$tmp/at" b drover serve --stop $vm >/dev/null
    drover serve --stop $vm >/dev/null
    check_writes b/images/$vm/root.img
    for disk in root data; do
        image=$(compgen -G "a/images/$vm-$disk.img.fenced-*") || fail "the image of $disk is not set aside"
        cmp "$image" b/images/$vm/$disk.img || fail "$disk differs"
    done
    rm -rf a/images/$vm* b/images/$vm a/vm.d/$vm.toml "$tmp"/?/state/$vm "$tmp"/?/run/$vm
}

is_wanted() { [[ ${#wanted[@]} == 0 || " ${wanted[*]} " == *" $1 "* ]]; }
# start_until STEP: a migration of a new VM
start_until() {
    new_vm
    stop_at "$1"
    "${migrate[@]}" $vm b >out 2>err &
    coordinator=$!
    reached "$1"
}
end_of_coordinator() {
    status=0
    wait $coordinator 2>/dev/null || status=$?
}

fill() { head -c 1G /dev/zero >"$1/full" 2>/dev/null || true; }

# run_case STEP VICTIM: STEP as SIDE.STEP
run_case() {
    is_wanted "$1/$2" || return 0
    by_hand=no
    start_until "$1"
    case $2 in
        full-source) fill a ;;
        full-destination) fill b ;;
        *) kill_victim "$2" ;;
    esac
    go_on "$1"
    end_of_coordinator
    if [[ $2 == full-* ]]; then
        ((status == 0)) || grep -q 'No space left' err || fail "it does not say what it lacks: $(cat err)"
        # What was written before leaves room for what matters.
        [[ $status != 3 ]] || fail "it could not be ended: $(cat err)"
        rm -f ?/full
    fi
    check_all
    printf '%-22s %-16s status %-3d owner %s\n' "$1" "$2" $status $owner
}

# A second client, so that there is a frame of each type.
shaker=
shake() {
    while :; do
        qemu-io -f raw -c "discard 1M 64k" -c "write -z 2M 64k" -c flush "nbd+unix:///?socket=$1" >/dev/null 2>&1 || true
    done
}

stop_shaker() {
    [[ -z $shaker ]] || { kill "$shaker" && wait "$shaker"; } 2>/dev/null || true
    shaker=
}
on_exit stop_shaker

# frame_case STEP VICTIM: STEP as MOMENT.TYPE. stall: the destination's process answers nobody for longer than it may.
frame_case() {
    is_wanted "$1/$2" || return 0
    by_hand=no
    new_vm
    stop_at "$1"
    # What the guest flushes has a frame of its own once the disk is copied.
    [[ $1 != *.flush ]] || stop_at source.handover
    shake "$tmp/a/run/$vm/data.sock" &
    shaker=$!
    "${migrate[@]}" --max-bandwidth 2M $vm b >out 2>err &
    coordinator=$!
    [[ $1 != *.flush ]] || reached source.handover
    reached "$1"
    if [[ $2 == stall ]]; then
        kill -STOP "$(serves b)"
    else
        kill_victim "$2"
    fi
    go_on "$1"
    [[ $1 != *.flush ]] || go_on source.handover
    if [[ $2 == stall ]]; then
        sleep 75
        kill -CONT "$(serves b)"
    fi
    end_of_coordinator
    stop_shaker
    check_all
    printf '%-22s %-16s status %-3d owner %s\n' "$1" "$2" $status $owner
}

# recovery_case STEP RECOVERY-STEP VICTIM: the coordinator is killed at STEP, and then, at a step of the recovery, the
# VICTIM. If that is the guardian, an operator is next.
recovery_case() {
    is_wanted "$1/$2/$3" || return 0
    by_hand=yes
    start_until "$1"
    stop_at "$2"
    kill_victim coordinator
    go_on "$1"
    end_of_coordinator
    reached "$2"
    kill_victim "$3"
    go_on "$2"
    check_all
    printf '%-22s %-16s owner %s\n' "$1 $2" "$3" $owner
}

steps=(source.handover source.fence source.promote destination.promote source.finish)
[[ $all == no ]] || steps=(source.prepare destination.prepare source.replicate "${steps[@]}" destination.finish)
for step in "${steps[@]}"; do
    for victim in coordinator agent source destination guardian full-source full-destination; do
        # Before it is asked for, there is none.
        [[ $step/$victim != *.prepare/destination ]] || continue
        run_case "$step" "$victim"
    done
done

# Not fenced; fenced, and refused; fenced, and promoted.
recoveries=(source.handover/source.cancel source.promote/destination.refuse source.promote/source.unfence
    source.finish/source.finish)
[[ $all == no ]] || recoveries+=(source.handover/source.resume source.handover/destination.refuse source.promote/source.refuse
    source.promote/source.resume destination.finish/source.promote destination.finish/destination.finish)
for recovery in "${recoveries[@]}"; do
    for victim in guardian source; do
        recovery_case "${recovery%/*}" "${recovery#*/}" $victim
    done
done

# Where it may open what it stops at.
mkdir wrap
cat >wrap/nbdkit <<SH
#!/bin/bash
for argument; do
    shift
    [[ \$argument == confine=yes ]] || set -- "\$@" "\$argument"
done
exec -a nbdkit $(command -v nbdkit) "\$@"
SH
chmod +x wrap/nbdkit
PATH=$tmp/wrap:$PATH
types=(handover)
[[ $all == no ]] || types=(open write zero trim flush consistent handover)
for type in "${types[@]}"; do
    for moment in frame applied; do
        for victim in coordinator agent source destination guardian; do
            frame_case "$moment.$type" $victim
        done
        [[ $all == no || $type != handover ]] || frame_case "$moment.$type" stall
    done
done
