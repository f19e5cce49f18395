#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A real guest moves over the WAN link with a tunnel between the sites, which the hooks of its VM file switch: its
# client goes on by the old site, where no route changes, and its connections last. First a migration that fails
# between fence and promote brings the guest, and its frames, back.
# test: timeout=400
# test: slow
# shellcheck disable=SC2119 # the functions of lab.sh have arguments of their own
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
# shellcheck source=test/e2e/guest-functions.sh
source "$e2e_top/test/e2e/guest-functions.sh"

binary=${DROVER_TUNNEL:-$DROVER_BUILD/tunnel/drover-tunnel}
# Looking for leaks at the end needs what the tunnel has forbidden itself.
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
tunnel() { at "$1" env DROVER_RUN="$tmp/run-$1" "$binary" "$2" vm; }
tunnel_status() { tunnel "$1" status 2>/dev/null | jq -r "$2"; }
linked() { [[ $(tunnel_status src .link.up) == true && $(tunnel_status dst .link.up) == true ]]; }
in_phase() { [[ $(tunnel_status "$1" .phase) == "$2" ]]; }
start_tunnel() { # SITE ROLE OPTION...
    mkdir -p "run-$1"
    background at "$1" env DROVER_RUN="$tmp/run-$1" "$binary" "$2" vm --mac "$LAB_VM_MAC" --address "$LAB_VM_ADDRESS/24" \
        --psk-file "$tmp/psk" "${@:3}" 2>"tunnel-$1.log"
    wait_for 20 test -S "run-$1/vm/tunnel.ctl"
}

lab_up
(umask 077; printf 'vm:%s\n' "$(head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n')" >psk)
start_tunnel dst away --port tap0 --listen '*:4789'
start_tunnel src home --bridge br0 --dial 10.8.0.2:4789 --keep forever
wait_for 20 linked

cat >switch <<SH
#!/bin/bash
run() { "$LAB/at" "\$1" env DROVER_RUN="$tmp/run-\$1" "$binary" "\$2" vm; }
# What is kept for it is given to it when it runs: until then it may yet go back.
resume() {
    for ((i = 0; i < 1500; ++i)); do
        if [[ \$("$DROVER_BUILD/test/lab/lab-client" qmp "$LAB/dst/monitor" query-status 2>/dev/null | jq -r .status) == running ]]; then
            run dst resume
            return
        fi
        sleep 0.02
    done
}
case \$DROVER_HOOK in
    post-switchover)
        run src divert
        resume >>"$tmp/switch.log" 2>&1 &
        ;;
    failed) run src rollback ;;
esac
SH
chmod +x switch
lab_make_vm vm root=64M:8
sed -i "s|^post-switchover = .*|post-switchover = [\"$tmp/switch\"]|; s|^failed = .*|failed = [\"$tmp/switch\"]|" "$LAB/src/vm.d/vm.toml"
lab_sites route src
at src drover serve vm >/dev/null
lab_start_guest vm src "$LAB/src/run/vm/root.sock" -- rec_rate=50
wait_for 180 grep -qs "guest: up" "$LAB/src/console.log"
lab_start_client
lab_wait_acknowledged 20
routes() { at src ip route; lab_sites in client ip route; }
routes >routes.before
migrate=(drover migrate vm dst --rsh "$LAB/at" --data-address 10.8.0.2)

echo "# there, and back before it runs there"
stop_at destination.promote
"$LAB/at" src "${migrate[@]}" >out 2>err &
coordinator=$!
reached destination.promote 120
wait_for 10 in_phase src diverted
kill -9 "$(pgrep -P $coordinator -f 'agent --stdio')"
go_on destination.promote
status=0
wait $coordinator || status=$?
((status == 1)) || fail "status $status: $(cat out err)"
wait_for 10 in_phase src ready
lab_wait_acknowledged 50
routes | diff routes.before - || fail "a route has changed"

echo "# to the other site"
at src "${migrate[@]}" >out 2>err || fail "$(cat out err)"
in_phase src diverted || fail "home is $(tunnel_status src .phase)"
wait_for 10 in_phase dst resumed || fail "away is $(tunnel_status dst .phase)"
lab_wait_acknowledged 50
routes | diff routes.before - || fail "a route has changed"
flows=$(tunnel_status dst .flows.tcp_open)
((flows >= 2)) || fail "the client's connections do not go through the tunnel: $(tunnel dst status)"
lab_stop_client
jq -r '"# longest silence: \(.records.silence_ms) ms"' "$LAB/client.json"

echo "# what was put up goes away"
acknowledged=$(lab_acknowledged)
lab_poweroff dst
tunnel src close >/dev/null
for site in src dst; do
    closed() { [[ -z $(find "run-$site" ! -type d) ]]; }
    wait_for 20 closed
done
lab_check_records "$(lab_image dst vm root)" "$acknowledged" >/dev/null
at dst drover serve vm --stop >/dev/null
