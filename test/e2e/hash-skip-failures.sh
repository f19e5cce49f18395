#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A stream that compares with what the destination has, while its client writes and the destination's process is
# killed again and again: the images are the same at the end.
# test: timeout=200 asan tsan-full
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
requires drover nbdkit qemu-io jq

src="nbd+unix:///?socket=$tmp/src.sock"
head -c 192M /dev/urandom >src.img
cp src.img dst.img
for at in 1 50 100 150; do # a run of 32 blocks each, with other content
    dd if=/dev/urandom of=dst.img bs=1M seek=$at count=2 conv=notrunc status=none
done
serve src src.img
serve dst dst.img role=destination size=192M
migration=$(new_id)
prepare dst "$migration" 2

# It writes until it is told to stop, old content among the new; an error ends it.
client() {
    local i
    for ((i = 0; ; i = (i + 37) % 3000)); do
        [[ ! -e client.stop ]] || break
        printf 'write -q -P %d %dk 4k\n' $((i % 3)) $((i * 64))
        ((i % 50)) || echo flush
        sleep 0.002
    done | qemu-io -f raw "$src" >client.out 2>&1
}
client &
client=$!
on_exit e2e_kill $client
replicate "$migration" 2 ',"compare":true'
not_connecting() { ! phase_is connecting; }
for pause in 0 0.02 0.05 0.1 0.2; do
    sleep $pause
    killed dst
    wait_for 20 phase_is connecting
    serve dst dst.img role=destination
    wait_for 20 not_connecting
done
touch client.stop
wait $client || fail "the client ended: $(cat client.out)"
if grep -qi error client.out; then
    fail "the client saw: $(cat client.out)"
fi
wait_for 60 phase_is in_sync
echo "same: $(replication same_bytes), sent: $(replication sent_bytes)"
(($(replication same_bytes) > 0)) || fail "nothing was found to be there"
quiesce=$(json .quiesce ctl "$tmp/src.ctl" quiesce '{"hold":true}')
token=$(json .token ctl "$tmp/src.ctl" fence "{\"quiesce\":\"$quiesce\",\"refusal_hash\":\"$(printf '0%.0s' {1..64})\"}")
wait_for 20 test -e src.img.fenced-2
cmp src.img.fenced-2 dst.img || fail "the images differ"
ctl "$tmp/dst.ctl" promote "{\"migration\":\"$migration\",\"token\":\"$token\"}" >/dev/null
stop src
stop dst
