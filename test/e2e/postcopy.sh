#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A real guest whose memory goes in other ways than by default: compressed, over several connections, with its
# processors slowed down; and in post-copy, where it changes more than the link carries: the guest runs at the
# destination with some of its memory still at the source, while the link is cut, the coordinator is killed, and in the
# end one half of it is.
#   postcopy.sh [PART...]     its functions at the end; without one: all
# test: timeout=1500 release
# test: full
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"

parts=(compressed connections not_converging link_cut coordinator_killed half_lost)
[[ $# == 0 ]] || parts=("$@")

lab_up rate=100
agents_over_link
options=(--rsh "$tmp/rsh" --data-address 10.8.0.2)

number=0
# A guest that rewrites 24 MiB for ever, 60 MiB a second, and its client.
start_vm() {
    vm=vm$((++number))
    rm -f "$LAB"/*/console.log "$LAB"/*/monitor "$LAB"/*/qmp
    lab_sites route src
    lab_make_vm $vm root=64M:8
    at src drover serve $vm >/dev/null
    lab_start_guest $vm src "$LAB/src/run/$vm/root.sock" -- rec_rate=50 dirty=24 dirty_rate=60
    wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
    lab_start_client
    lab_wait_acknowledged 10
}
# start WORD...
start() {
    "$LAB/at" src drover migrate $vm dst "${options[@]}" --json "$@" >out 2>err &
    migration=$!
    on_exit e2e_kill $migration
}
ended() {
    local status=0
    wait $migration || status=$?
    ((status == $1)) || fail "status $status, not $1: $(tail -n 3 out; cat err; tail -n 3 "$LAB"/*/console.log "$LAB"/dst/state/$vm/*.log)"
}
report() { jq -r "select(.event == \"report\") | $1" out; }
in_phase() { grep -q "\"phase\":\"$1\"" out; }
status_of_memory() { timeout 10 "$LAB_BUILD/test/lab/lab-client" qmp "$LAB/$1/monitor" query-migrate 2>/dev/null; }
# The guest runs at dst, and the source has some of its memory. While the link is cut, the monitor there may not answer.
is_torn() { runs_at dst && has_rest; }
has_rest() { [[ $(status_of_memory src | jq -r .status) == postcopy-* ]]; }
arrived() {
    lab_no_guest src || fail "its QEMU is still at the source"
    [[ "$(role_at src) $(role_at dst)" == "fenced owner" ]] || fail "owners: $(role_at src), $(role_at dst)"
    lab_wait_acknowledged 20
    lab_stop_client || fail "its client's connection broke"
    put_away
}
put_away() {
    local acknowledged
    acknowledged=$(lab_acknowledged)
    lab_no_guest dst || lab_poweroff dst
    at dst drover serve $vm --stop >/dev/null
    at src drover serve $vm --stop >/dev/null
    lab_check_records "$(lab_image dst $vm root)" "$acknowledged" >/dev/null
    clean_at_dst || fail "left at the destination: $(leftovers)"
    rm -rf "$LAB"/*/{images,state,run}/$vm "$LAB/src/vm.d/$vm.toml"
}

compressed() {
    echo "# what can't be together"
    start_vm
    expect 2 at src drover migrate $vm dst "${options[@]}" --memory precopy --allow-postcopy
    expect 2 at src drover migrate $vm dst "${options[@]}" --memory-compress xbzrle --memory-connections 2
    expect 2 at src drover migrate $vm dst "${options[@]}" --memory postcopy --memory-compress zstd
    echo "# its processors are slowed down until it converges"
    start --auto-converge --memory-compress xbzrle --downtime 1500
    wait_for 120 in_phase memory
    has_compressed() { status_of_memory src | jq -e '."xbzrle-cache".pages > 0' >/dev/null; }
    wait_for 60 has_compressed
    ended 0
    [[ $(report .postcopy_ms) == null ]] || fail "it was in post-copy: $(cat out)"
    arrived
}

connections() {
    echo "# several connections and zstd"
    start_vm
    start --memory-compress zstd --memory-connections 3 --downtime 1500
    ended 0
    [[ $(lab_monitor dst query-migrate-parameters | jq -r '"\(."multifd-compression") \(."multifd-channels")"') == "zstd 3" ]] ||
        fail "not over several connections: $(lab_monitor dst query-migrate-parameters)"
    arrived
}

not_converging() {
    echo "# it does not converge: an abort with figures, and then post-copy"
    start_vm
    start --max-bandwidth 8M --converge-timeout 15
    ended 1
    expect_text err "(--converge-timeout)"
    wait_for 30 clean_at_dst
    start --max-bandwidth 8M --converge-timeout 15 --allow-postcopy
    ended 0
    expect_text err "goes on in post-copy: not ready after 15 s (--converge-timeout)"
    [[ $(report .postcopy_ms) -gt 0 ]] || fail "it was not in post-copy: $(cat out)"
    arrived
}

link_cut() {
    echo "# the link is cut while the guest is torn"
    start_vm
    start --memory postcopy --max-bandwidth 2M
    wait_for 120 is_torn
    lab_sites link cut=1 >/dev/null
    sleep 20
    has_rest || fail "not what was to be tested"
    lab_sites link cut=0 >/dev/null
    ended 0
    expect_text err "the memory goes on over a new link"
    arrived
}

coordinator_killed() {
    echo "# the coordinator is killed while the guest is torn"
    start_vm
    start --memory postcopy --max-bandwidth 2M
    wait_for 120 is_torn
    kill -9 $migration
    wait $migration 2>/dev/null || true
    has_rest || fail "not what was to be tested"
    wait_for 120 is_over
    arrived
}

half_lost() {
    echo "# aborted before it is torn, and one half of it is lost before anything is fenced"
    start_vm
    stop_at source.handover
    start --memory postcopy
    reached source.handover 120
    at src drover abort $vm >abort.out 2>&1 &
    aborting=$!
    sleep 0.5
    go_on source.handover
    wait $aborting || fail "abort: $(cat abort.out err)"
    ended 1
    runs_at src || fail "it does not run: $(guest_state src)"
    wait_for 30 clean_at_dst
    echo "# one half of it is lost"
    start --memory postcopy --max-bandwidth 2M
    wait_for 120 is_torn
    kill -9 "$(lab_guest_pids dst)"
    ended 3
    expect_text err "It has stopped as if its power had failed. Its disks are there: start it there"
    lab_no_guest src || fail "its QEMU is still at the source"
    [[ "$(role_at src) $(role_at dst)" == "fenced owner" ]] || fail "owners: $(role_at src), $(role_at dst)"
    is_over || fail "not over"
    lab_stop_client 2>/dev/null || true
    put_away
}

for part in "${parts[@]}"; do
    $part
done
