#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Streams between two plugins over the lab's WAN link, with TLS: as many connections as the losses ask for, within the
# window's memory and the bandwidth that was given, and in the end the same bytes on both sides.
# test: timeout=300
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/stream-functions.sh
source "$e2e_top/test/e2e/stream-functions.sh"
requires drover nbdkit jq ip psktool qemu-io
[[ $(id -u) == 0 ]] || skip "network namespaces need root"

sites() { "$e2e_top/test/lab/sites" --dir "$tmp/net" "$@"; }
mkdir net
on_exit "$e2e_top/test/lab/sites" --dir "$tmp/net" down
DROVER_LAB_BIN=$DROVER_BUILD/test/lab sites up
mkdir tls
psktool -u mover -p tls/keys.psk >/dev/null 2>&1
printf '[overrides]\ntls-disabled-cipher = CHACHA20-POLY1305\n' >tls/priority
export GNUTLS_SYSTEM_PRIORITY_FILE=$tmp/tls/priority
to=$(jq -cn --arg key "$(cut -d: -f2 tls/keys.psk)" '{host: "10.8.0.2", port: 10809, psk_user: "mover", psk_key: $key}')

# start_pair MIB: random data at src, an empty dst
start_pair() {
    head -c "$1M" /dev/urandom >src.img
    rm -rf src.img.drover dst.img* {src,dst}.{sock,ctl}
    background ip netns exec "$(sites netns src)" nbdkit -f -t 32 -U "$tmp/src.sock" "$DROVER_PLUGIN" "control=$tmp/src.ctl" src.img
    pid_of[src]=$pid
    background ip netns exec "$(sites netns dst)" nbdkit -f -t 32 -i 10.8.0.2 -p 10809 --tls=on --tls-psk="$tmp/tls/keys.psk" \
        "$DROVER_PLUGIN" "control=$tmp/dst.ctl" dst.img role=destination size="$1M"
    pid_of[dst]=$pid
    wait_for 20 test -S src.ctl
    wait_for 20 test -S dst.ctl
    migration=$(new_id)
    refusal=$(ctl "$tmp/dst.ctl" prepare "{\"migration\":\"$migration\",\"generation\":2,\"uuid\":\"$(json .uuid ctl "$tmp/src.ctl" status)\"}" | jq -r .refusal_hash)
}
# start_stream [MORE]
start_stream() {
    ctl "$tmp/src.ctl" replicate "{\"migration\":\"$migration\",\"generation\":2,\"to\":$to${1-}}" >/dev/null
}
# How many connections there were at most, in $most.
most_until_in_sync() {
    local now
    most=0
    until phase_is in_sync; do
        ! phase_is failed || fail "$(replication error)"
        now=$(replication connections)
        most=$((now > most ? now : most))
        sleep 0.1
    done
}
hand_over() {
    local quiesce token
    quiesce=$(json .quiesce ctl "$tmp/src.ctl" quiesce '{"hold":true}')
    token=$(json .token ctl "$tmp/src.ctl" fence "{\"quiesce\":\"$quiesce\",\"refusal_hash\":\"$refusal\"}")
    ctl "$tmp/dst.ctl" promote "{\"migration\":\"$migration\",\"token\":\"$token\"}" >/dev/null
    wait_for 20 test -e src.img.fenced-2
    cmp src.img.fenced-2 dst.img || fail "the images differ"
    stop src
    stop dst
    rm -rf -- src.img*
}

echo "# a link that loses packets: more connections"
sites link loss=1 >/dev/null
start_pair 24
start_stream
most_until_in_sync
((most > 2)) || fail "it kept to $most connections"
hand_over

echo "# as many as were asked for; few on a link that loses only what is too much for it"
start_pair 4
start_stream ',"connections":3'
wait_for 60 phase_is in_sync
[[ $(replication connections) == 3 ]] || fail "$(replication connections) connections"
hand_over

sites link loss=0 >/dev/null
start_pair 32
start_stream
most_until_in_sync
((most <= 4)) || fail "$most connections over a link that is full"
hand_over

echo "# no more bandwidth than it was given, also when that changes"
start_pair 32
start_stream ',"max_bandwidth":4000000'
rate_is_at_most() { # BYTES/S
    local begun ended
    wait_for 20 phase_is bulk
    begun=$(ctl "$tmp/src.ctl" status | jq -c '[.replication.sent_bytes, .replication.elapsed_ms]')
    sleep 4
    ended=$(ctl "$tmp/src.ctl" status | jq -c '[.replication.sent_bytes, .replication.elapsed_ms]')
    # It goes a frame at a time.
    jq -en --argjson b "$begun" --argjson e "$ended" --argjson most "$1" \
        '$e[0] - $b[0] <= 1.05 * $most * ($e[1] - $b[1]) / 1000 + 262144' >/dev/null || fail "from $begun to $ended at $1 bytes/s"
    jq -en --argjson b "$begun" --argjson e "$ended" '$e[0] > $b[0]' >/dev/null || fail "nothing was sent"
}
rate_is_at_most 4000000
ctl "$tmp/src.ctl" set '{"max_bandwidth":1000000}' >/dev/null
sleep 1 # what was under way
rate_is_at_most 1000000
ctl "$tmp/src.ctl" set '{"max_bandwidth":0}' >/dev/null
wait_for 60 phase_is in_sync
hand_over

echo "# a link that is cut, for a moment and for longer than a connection lives: on from what has arrived"
start_pair 32
start_stream ',"max_bandwidth":4000000'
is_left() { [[ $(replication dirty_bytes) -le $1 ]]; }
write_at() { qemu-io -f raw -c "write -f -P $2 $1 4k" "nbd+unix:///?socket=$tmp/src.sock" >io.out 2>&1 || fail "the client: $(cat io.out)"; }
left=32
for seconds in 1 3 45; do
    wait_for 60 is_left $(((left -= 6) << 20))
    sites link cut=1 >/dev/null
    write_at ${left}M $left # is answered
    sleep $seconds
    [[ $(replication phase) != failed ]] || fail "$(replication error)"
    sites link cut=0 >/dev/null
done
wait_for 120 phase_is in_sync
# The blocks that were written meanwhile may go twice.
captured=$(replication captured_bytes)
((captured <= (32 << 20) + 4 * 65536)) || fail "$captured bytes were copied of 32 MiB"
hand_over
