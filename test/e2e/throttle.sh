#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A client that writes more than the link takes: the stream gets ready all the same, the client is slowed down and sees it
# told, one that writes little beside it is not, and nobody is while the link is down.
# test: timeout=200 tsan-full
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
requires drover nbdkit fio jq

src="nbd+unix:///?socket=$tmp/src.sock"
head -c 64M /dev/urandom >src.img
# A log that holds little: what does not fit turns blocks dirty.
serve src src.img log-memory=4M
serve dst dst.img role=destination size=64M
migration=$(new_id)
prepare dst "$migration" 2

# writer NAME OPTION...
writer() {
    local name=$1
    shift
    background fio --name="$name" --ioengine=nbd --uri="$src" --rw=randwrite --norandommap --bs=4k \
        --size=64M --time_based --runtime=600 --randrepeat=0 --output="$name.log" "$@"
}
is_throttled() { [[ $(replication throttle_limit) != null ]]; }
slowed() { [[ $(replication 'slowed | length') -ge 1 ]]; }

writer greedy --iodepth=16
greedy=$pid
writer modest --iodepth=1 --rate_iops=20
modest=$pid
replicate "$migration" 2 ',"max_bandwidth":20000000'
echo "# it is behind, says so, and gets ready"
wait_for 60 slowed
wait_for 20 is_throttled
# In sync it comes as well, now and then.
is_ready() { [[ $(replication phase) == @(ready|in_sync) ]]; }
wait_for 120 is_ready
ctl "$tmp/src.ctl" status | jq '.replication | {phase, throttle_limit, throttle_delay_ms, drain_rate, write_rate, slowed}'
delayed=$(replication 'slowed | map(.delayed_ms) | sort')
(($(jq '.[-1]' <<<"$delayed") > 0)) || fail "nobody has waited"
[[ $(jq '(.[:-1] | add // 0) * 20 <= .[-1]' <<<"$delayed") == true ]] || fail "the client that writes little was slowed down as well: $delayed"

echo "# nobody waits for a destination that has gone"
killed dst
wait_for 20 phase_is connecting
[[ $(replication throttle_limit) == null ]] || fail "it goes on while the link is down"
serve dst dst.img role=destination
wait_for 60 is_throttled

echo "# a cancel ends it, and the clients have seen no error"
ctl "$tmp/src.ctl" cancel >/dev/null
[[ $(json .replication ctl "$tmp/src.ctl" status) == null ]] || fail "it goes on"
kill -INT "$greedy" "$modest"
wait_for 30 eventually_gone "$greedy"
wait_for 30 eventually_gone "$modest"
if grep -qi 'error=' greedy.log modest.log; then
    fail "a client saw an error: $(cat greedy.log modest.log)"
fi
stop src
stop dst

echo "# in sync, a burst is more than the downtime's budget: not ready until it has gone"
head -c 16M /dev/urandom >burst.img
serve src burst.img
serve dst burst-there.img role=destination size=16M
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2 ',"max_bandwidth":4000000,"compress":"none"'
wait_for 60 phase_is in_sync
burst() { fio --name=burst --ioengine=nbd --uri="$src" --rw=write --bs=64k --iodepth=8 --size=12M --refill_buffers --output=burst.log; }
background burst
wait_for 20 phase_is bulk
(($(replication 'lag_bytes + .replication.dirty_bytes') > 1200000)) || fail "$(ctl "$tmp/src.ctl" status)"
wait_for 60 phase_is in_sync
ctl "$tmp/src.ctl" cancel >/dev/null
stop src
stop dst
