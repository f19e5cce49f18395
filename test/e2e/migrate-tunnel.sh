#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A real guest keeps its address by the tunnel of its VM file ([network]): its client goes on by the old site, where no
# route changes, through aborts, killed processes of either side and both tunnel ends, there and back home. After each,
# the tunnel is where the guest's frames have to go, and nothing is left of it where it is not needed.
#   migrate-tunnel.sh [--all] [CASE...]     CASE: STEP/VICTIM
# test: timeout=600
# test: slow
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"
# Looking for leaks at the end needs what the tunnel has forbidden itself.
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0

cases=(source.memory/home source.handover/home source.promote/away source.promote/coordinator destination.promote/agent)
if [[ ${1:-} == --all ]]; then
    shift
    cases=()
    for step in source.memory source.handover source.fence source.promote destination.promote source.finish; do
        for victim in coordinator agent home away; do cases+=("$step/$victim"); done
    done
fi
[[ $# == 0 ]] || cases=("$@")

tunnel_status() { at "$1" drover status vm --json 2>/dev/null | jq -r ".vms[0].tunnels[0].status | $2"; }
in_phase() { [[ $(tunnel_status "$1" .phase) == "$2" ]]; }
traces() { find "$LAB/$1/run" -path '*.nic*' ! -type d; }
processes() { ip netns pids "$(lab_sites netns "$1")" | xargs -r ps -o args= -p | grep -E 'drover-tunnel|tunnel-h' || true; }
no_tunnel() { [[ -z "$(traces "$1")$(processes "$1")" && -z $(at "$1" nft list ruleset) ]]; }
routes() { at src ip route; lab_sites in client ip route; }
same_routes() { routes | diff routes.before - || fail "a route has changed"; }
guardian_pid() { pgrep -f "guardian $LAB/$1/vm.d/vm.toml" | head -n 1; }
is_over() { tail -n 1 "$LAB/src/state/vm/journal" | grep -q '"step":"over"' && [[ -z $(guardian_pid src) ]]; }
runs_at() { [[ $(timeout 10 "$LAB_BUILD/test/lab/lab-client" qmp "$LAB/$1/monitor" query-status 2>/dev/null | jq -r .status) == running ]]; }
victim_pid() {
    case $1 in
        coordinator) echo "$coordinator" ;;
        agent) pgrep -P "$coordinator" -f 'agent --stdio' ;;
        home) tunnel_status src .pid ;;
        away) tunnel_status dst .pid ;;
    esac
}
there=(drover migrate vm dst --rsh "$LAB/at" --data-address 10.8.0.2)
back=(drover migrate vm src --rsh "$LAB/at" --data-address 10.8.0.1)
# QEMU's monitors of the one before are no more.
move() { # FROM COMMAND...
    rm -f "$LAB"/*/console.log
    at "$@" >out 2>err || fail "status $?: $(cat out err)"
}

one_disk_guest_up
routes >routes.before

echo "# what this site can't do, and what the other one does not allow: nothing is touched"
sed -i 's/^bridge = .*/&\nhome-bridge = "br9"/' "$LAB/src/vm.d/vm.toml"
expect 2 at src "${there[@]}"
expect_text err "'br9' is no bridge of this host"
sed -i '/^home-bridge/d' "$LAB/src/vm.d/vm.toml"
cp "$LAB/dst/drover.toml" drover.toml
sed -i 's/^\[tunnel\]/&\nnetworks = ["10.2.0.0\/16"]/' "$LAB/dst/drover.toml"
expect 1 at src "${there[@]}"
expect_text err "tunnel.networks"
cp drover.toml "$LAB/dst/drover.toml"
at src "${there[@]}" --dry-run >/dev/null

echo "# no link: it fails before the guest is paused, and nothing is left"
at dst nft add table inet lab
at dst nft add chain inet lab in '{ type filter hook input priority 0; }'
at dst nft add rule inet lab in iifname wan0 udp dport 1-65535 drop
printf '\n[timeouts]\nconnect = 3\n' >>"$LAB/src/drover.toml"
expect 1 at src "${there[@]}"
expect_text err "the link does not come up"
expect_text err "goes on here as before"
at dst nft delete table inet lab
sed -i '/^\[timeouts\]/,$d' "$LAB/src/drover.toml"
wait_for 20 no_tunnel src
wait_for 20 no_tunnel dst

echo "# aborted after the divert: the frames come back"
stop_at source.handover
"$LAB/at" src "${there[@]}" >out 2>err &
coordinator=$!
reached source.handover 120
in_phase src diverted || fail "home is $(tunnel_status src .phase)"
[[ $(tunnel_status dst .link.up) == true ]] || fail "the away end has no link"
kill -INT $coordinator
go_on source.handover
status=0
wait $coordinator || status=$?
((status == 1)) || fail "status $status: $(cat out err)"
wait_for 20 no_tunnel src
wait_for 20 no_tunnel dst
lab_wait_acknowledged 50
same_routes

run_case() {
    local step=$1 victim=$2 status=0 owner
    stop_at "$step"
    rm -f "$LAB"/dst/monitor
    "$LAB/at" src "${there[@]}" >out 2>err &
    coordinator=$!
    reached "$step" 60
    kill_victim "$victim"
    go_on "$step"
    wait $coordinator 2>/dev/null || status=$?
    wait_for 150 is_over
    owner=src
    ! runs_at dst || owner=dst
    wait_for 30 runs_at $owner
    if [[ $owner == src ]]; then
        wait_for 30 no_tunnel src
        wait_for 30 no_tunnel dst
    else
        wait_for 30 in_phase src diverted
        wait_for 30 in_phase dst resumed
    fi
    lab_wait_acknowledged 50
    same_routes
    printf '%-20s %-12s status %d, owner %s\n' "$step" "$victim" $status $owner
    if [[ $owner == dst ]]; then
        come_home
    fi
}

# With the same connections; the tunnel is not needed any more.
come_home() {
    rm -f "$LAB"/src/monitor
    move dst "${back[@]}"
    sed -i "s|^qmp = .*|qmp = \"$LAB/src/run/vm/qmp.sock\"|" "$LAB/src/vm.d/vm.toml" # drover's own
    wait_for 30 runs_at src
    wait_for 20 no_tunnel src
    wait_for 20 no_tunnel dst
    lab_wait_acknowledged 50
    same_routes
}

echo "# killed in between: the coordinator, its agent, and each end of the tunnel"
for case in "${cases[@]}"; do
    run_case "${case%/*}" "${case#*/}"
done

echo "# for good, as drover tells it"
rm -f "$LAB"/dst/monitor
move src "${there[@]}"
expect_text out "vm.nic0: home, diverted, link up"
at src drover status vm | grep -q "tunnel vm.nic0: home, diverted, link up" || fail "$(at src drover status vm)"
at dst drover status vm | grep -q "tunnel vm.nic0: away, resumed, link up" || fail "$(at dst drover status vm)"
jq -e '.tunnels[0].status.link.cipher' "$LAB/src/state/vm/last-migration.json" >/dev/null || fail "the report: $(cat "$LAB/src/state/vm/last-migration.json")"
lab_wait_acknowledged 50
(($(tunnel_status dst .flows.tcp_open) >= 2)) || fail "the client's connections do not go through the tunnel"
! grep -rqE '"?psk_key"?.{0,4}[0-9a-f]{64}' "$LAB"/*/state/vm/*.log || fail "a key is in a log"
lab_stop_client
jq -r '"# longest silence: \(.records.silence_ms) ms"' "$LAB/client.json"
acknowledged=$(lab_acknowledged)
lab_poweroff dst
at src "$LAB_BUILD/tunnel/drover-tunnel" close vm.nic0
wait_for 20 no_tunnel src
wait_for 20 no_tunnel dst
lab_check_records "$(lab_image dst vm root)" "$acknowledged" >/dev/null
at dst drover serve vm --stop >/dev/null
