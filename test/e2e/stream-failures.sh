#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Streams between two plugins by themselves, when something dies: the source's clients notice nothing,
# nothing waits for ever, and the messages say what happened.
# test: timeout=200 asan tsan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
requires drover nbdkit qemu-io jq

src="nbd+unix:///?socket=$tmp/src.sock"

echo "# the destination is killed, twice: the client goes on, and the stream does when there is one again"
head -c 48M /dev/urandom >src.img
serve src src.img
serve dst dst.img role=destination size=48M
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2 ',"max_bandwidth":30000000'
# It writes until it is told to stop; an error ends it.
client() {
    local i
    for ((i = 0; ; i = (i + 1) % 700)); do
        [[ ! -e client.stop ]] || break
        printf 'write -q -P %d %dk 64k\n' $((i % 256)) $((i * 64))
        ((i % 50)) || echo flush
    done | qemu-io -f raw "$src" >client.out 2>&1
}
client &
client=$!
on_exit e2e_kill $client
wait_for 20 phase_is bulk
for _ in 1 2; do
    sleep 0.3
    killed dst
    wait_for 20 phase_is connecting
    serve dst dst.img role=destination
    not_connecting() { ! phase_is connecting; }
    wait_for 20 not_connecting
done
ctl "$tmp/src.ctl" set '{"max_bandwidth":0}' >/dev/null
touch client.stop
wait $client || fail "the client ended: $(cat client.out)"
if grep -qi error client.out; then
    fail "the client saw: $(cat client.out)"
fi
wait_for 60 phase_is in_sync

echo "# who will forward is there before the promotion, and gets nothing until then"
way() { echo "nbd+unix:///forward/$migration/2/$1?socket=$tmp/dst.sock"; }
reads() { qemu-io -r -f raw -c 'read 0 4k' "$1" >reads.out 2>&1 && grep -q 'read 4096/4096' reads.out; }
reads "$(way 0)" && fail "the disk can be read at a destination that was not promoted"
grep -q 'read failed' reads.out || fail "its export can't be opened yet: $(cat reads.out)"
forward="{\"socket\":\"$tmp/dst.sock\"}"
quiesce=$(json .quiesce ctl "$tmp/src.ctl" quiesce "{\"hold\":true,\"forward\":$forward}")
later_one_is_there() { ! reads "$(way 0)" && grep -q "can't open" reads.out; }
wait_for 20 later_one_is_there
ctl "$tmp/src.ctl" cancel "{\"quiesce\":\"$(new_id)\"}" 2>/dev/null && fail "a quiesce that is none was cancelled"
token=$(json .token ctl "$tmp/src.ctl" fence "{\"quiesce\":\"$quiesce\",\"refusal_hash\":\"$(printf '0%.0s' {1..64})\",\"forward\":$forward}")
wait_for 20 test -e src.img.fenced-2 # set aside after the answer to fence
cmp src.img.fenced-2 dst.img || fail "the images differ"
ctl "$tmp/dst.ctl" promote "{\"migration\":\"$migration\",\"token\":\"$token\"}" >/dev/null
ctl "$tmp/src.ctl" forward >/dev/null
qemu-io -f raw -c 'write -P 0x5d 3M 64k' -c flush "$src" >/dev/null || fail "it does not forward"
reads "$(way 0)" && fail "an older connection came after a later one"
cmp -i 3M -n 64K <(tr '\0' '\135' </dev/zero | head -c 4M) dst.img || fail "the write is not at the destination"
compgen -G 'src.img*/early-psk' && fail "the key is left"
stop src
stop dst
rm -rf -- src.img* dst.img*

echo "# a destination that is stopped: cancel and status do not wait for it"
truncate -s 16M src.img
serve src src.img
serve dst dst.img role=destination size=16M
migration=$(new_id)
prepare dst "$migration" 2
kill -STOP "${pid_of[dst]}"
drover ctl "$tmp/src.ctl" replicate "{\"migration\":\"$migration\",\"generation\":2,\"to\":{\"socket\":\"$tmp/dst.sock\"}}" >replicate.out 2>&1 &
asked=$!
phase_is_there() { [[ $(replication phase) != null ]]; }
wait_for 10 phase_is_there
before=$SECONDS # an answer of the destination would be waited for for 30 s
ctl "$tmp/src.ctl" cancel >/dev/null
((SECONDS - before < 25)) || fail "cancel took $((SECONDS - before)) s"
wait $asked && fail "replicate claims to have worked"
kill -CONT "${pid_of[dst]}"
qemu-io -f raw -c 'write -P 9 1M 64k' "$src" >/dev/null || fail "the client does not go on"

echo "# neither a shutdown nor a signal waits for a handover"
terminated() {
    kill "${pid_of[$1]}"
    wait_for 20 eventually_gone "${pid_of[$1]}"
}
generation=2
for ends in stop terminated; do
    migration=$(new_id)
    prepare dst "$migration" $((++generation))
    replicate "$migration" $generation
    wait_for 30 phase_is in_sync
    kill -STOP "${pid_of[dst]}"
    drover ctl "$tmp/src.ctl" quiesce '{"hold":true}' >quiesce.out 2>&1 &
    asked=$!
    wait_for 10 phase_is quiescing
    before=$SECONDS
    $ends src
    ((SECONDS - before < 25)) || fail "the end of the source took $((SECONDS - before)) s"
    wait $asked && fail "quiesce claims to have worked"
    kill -CONT "${pid_of[dst]}"
    serve src src.img
done

echo "# a new migration ends the stream of the one before, which does not get in again"
prepare dst "$(new_id)" 5
migration=$(new_id)
prepare dst "$migration" 6
replicate "$migration" 6
wait_for 30 phase_is in_sync
prepare dst "$(new_id)" 7
qemu-io -f raw -c 'write -P 10 2M 64k' "$src" >/dev/null || fail "the client does not go on"
wait_for 60 phase_is failed
if od -An -v -tx1 -j 2M -N 65536 dst.img | grep -q 0a; then
    fail "the old stream wrote into the new replica"
fi
ctl "$tmp/src.ctl" cancel >/dev/null
stop src
stop dst
rm -rf -- src.img* dst.img*

echo "# a stream that is cancelled takes its answers: nbdkit 1.32 aborts when it cannot give them"
head -c 48M /dev/urandom >src.img
serve src src.img
background nbdkit -f -U "$tmp/slow.sock" --filter=delay memory 48M delay-write=300ms
wait_for 20 test -S slow.sock
serve dst "uri=nbd+unix:///?socket=$tmp/slow.sock" role=destination "state=$tmp/dst.state" 2>dst.log
captured() { (($(replication captured_bytes) > 0)); }
for generation in 2 3 4; do
    migration=$(new_id)
    prepare dst "$migration" $generation
    replicate "$migration" $generation
    wait_for 20 captured
    ctl "$tmp/src.ctl" cancel >/dev/null
    ctl "$tmp/dst.ctl" refuse "{\"migration\":\"$migration\"}" >/dev/null
done
prepare dst "$(new_id)" 5
replicate "$(new_id)" 6 2>/dev/null && fail "the destination took another migration"
migration=$(new_id)
prepare dst "$migration" 7
replicate "$migration" 7
wait_for 20 captured
prepare dst "$(new_id)" 8
ctl "$tmp/src.ctl" cancel >/dev/null
if grep "write reply" dst.log; then
    fail "the destination was left with answers"
fi
stop src
stop dst
rm -rf -- src.img* dst.state

echo "# a destination whose disk fails: said so, not tried for ever"
head -c 8M /dev/urandom >src.img
serve src src.img
background nbdkit -f -U "$tmp/bad.sock" --filter=error memory 8M error=EIO error-pwrite-rate=20%
wait_for 20 test -S bad.sock
serve dst "uri=nbd+unix:///?socket=$tmp/bad.sock" role=destination "state=$tmp/dst.state"
migration=$(new_id)
prepare dst "$migration" 2
replicate "$migration" 2
wait_for 30 phase_is failed
[[ $(replication error) == *"destination's disk failed"* ]] || fail "$(replication error)"
qemu-io -f raw -c 'write -P 9 1M 64k' "$src" >/dev/null || fail "the client does not go on"
ctl "$tmp/src.ctl" cancel >/dev/null
[[ $(json .role ctl "$tmp/src.ctl" status) == owner ]] || fail "not the owner any more"
stop src
stop dst
