#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The link between the sites is cut while a disk is copied, for longer than TCP, a stream or an agent waits by itself: the
# migration goes on where it was. A coordinator that dies behind such a cut leaves an agent that nobody has to wait for.
# test: timeout=400 release full
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/writer-functions.sh
source "$e2e_top/test/e2e/writer-functions.sh"
requires drover nbdkit qemu-io jq ip socat
[[ $(id -u) == 0 ]] || skip "network namespaces need root"

sites() { "$e2e_top/test/lab/sites" --dir "$tmp/net" "$@"; }
mkdir net
on_exit "$e2e_top/test/lab/sites" --dir "$tmp/net" down
DROVER_LAB_BIN=$DROVER_BUILD/test/lab sites up
site dst 'listen = "10.8.0.2"'
site src 'listen = "10.8.0.1"'
DROVER_REMOTE=$(command -v drover)
export DROVER_REMOTE
at() {
    local where=$1
    shift
    ip netns exec "$(sites netns "$where")" env DROVER_CONF="$tmp/$where/drover.toml" DROVER_RUN="$tmp/$where/run" DROVER_STATE="$tmp/$where/state" "$@"
}
# The agent is reached over the link, as with ssh.
printf '#!/bin/bash\nexec socat - TCP:10.8.0.2:2222\n' >rsh
chmod +x rsh
at dst socat TCP-LISTEN:2222,bind=10.8.0.2,reuseaddr,fork EXEC:"$DROVER_REMOTE agent --stdio" 2>socat.log &
on_exit e2e_kill $!

megabytes=40
truncate -s 64M src/images/root.img
dd if=/dev/urandom of=src/images/root.img bs=1M seek=16 count=$megabytes conv=notrunc status=none
printf 'name = "vm"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/src/images/root.img" >src/vm.d/vm.toml
at src drover serve vm >/dev/null
pause=0.02
start_writer "$tmp/src/run/vm/root.sock"

copied() {
    local left
    left=$(at src drover ctl vm/root status | jq '.replication.dirty_bytes // 0')
    [[ $left -gt 0 && $left -le $(((megabytes - 10) << 20)) ]]
}
agent=
started() {
    at src drover migrate vm dst --rsh "$tmp/rsh" --data-address 10.8.0.2 --disk-only --detach --max-bandwidth 4M >out 2>err &
    on_exit e2e_kill $!
    [[ -z $agent ]] || wait_for 60 eventually_gone "$agent" # and with it what the source still sent
    wait_for 30 copied
    migration=$(at src pgrep -nf '^drover migrate vm dst')
    sites link cut=1 >/dev/null
    before=$(acknowledged)
    wait_for 20 has_acknowledged $((before + 10)) # the client notices nothing
}

echo "# the source's host dies behind a cut, as far as the agent can see: the next migration does not wait for it"
started
way=$(pgrep -P "$migration" -x socat)
on_exit kill -9 "$way" 2>/dev/null
kill -STOP "$way" # it says no farewell
kill -9 "$migration" "$(pgrep -f "guardian $tmp/src/vm.d/vm.toml")"
agent=$(jq .pid <(cut -d ' ' -f 4- dst/state/vm/agent.lock))
sleep 65 # it has heard nothing for a minute, and was told to wait for ten
[[ -e /proc/$agent ]] || fail "the agent has not waited"
sites link cut=0 >/dev/null

echo "# a cut of 80 s"
started
sleep 80
[[ -e /proc/$migration ]] || fail "it has given up: $(cat out err)"
expect_text err "the link is dialled anew"
sites link cut=0 >/dev/null
is_over() { [[ ! -e /proc/$migration ]]; }
wait_for 120 is_over
grep -q 'disks moved' out || fail "it has not come to its end: $(cat out err)"
stop_writer
at src drover serve --stop vm >/dev/null
at dst drover serve --stop vm >/dev/null
check_writes dst/images/vm/root.img
cmp src/images/root.img.fenced-* dst/images/vm/root.img || fail "the images differ"
captured=$(jq '.disks[0].captured_bytes' src/state/vm/last-migration.json)
((captured * 4 <= (megabytes << 20) * 5)) || fail "$captured bytes were copied of $megabytes MiB"
