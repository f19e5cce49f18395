#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Strangers at the ports of replication, at both sides, while a disk moves: without the key nothing of it
# is read, written or learned; a thousand connections that never say who they are, and some that say
# it a byte at a time, stop neither the migration nor the source's client, and are rid of at the end.
# test: asan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit nbdinfo qemu-io jq

# What a service gets; its processes may take more where the hard limit lets them.
(($(ulimit -H -n) >= 4096)) || skip "at most $(ulimit -H -n) file descriptors"
ulimit -S -n 1024

site a 'listen = "127.0.0.1"' 'ports = "21869-21879"'
site b 'listen = "127.0.0.1"' 'ports = "21889-21899"'
ways_to_sites "$tmp/at"

size=$((24 * 1024 * 1024))
secret=not-for-strangers
site a
for ((i = 0; i < 20 * 1024 * 1024 / 4096; i++)); do printf "%-4096d" "$i"; done >a/images/root.img
printf %s "$secret" | dd of=a/images/root.img conv=notrunc status=none
truncate -s $size a/images/root.img
printf 'name = "vm1"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/root.img" >a/vm.d/vm1.toml
drover serve vm1

status() { json "$2" "$tmp/at" "$1" drover ctl vm1/root status; }
port() { jq .port "$tmp/$1/run/vm1/root.json"; }
process() { jq .pid "$tmp/$1/run/vm1/root.json"; }
descriptors() { find "/proc/$(process "$1")/fd" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }
uuid=$(status a .uuid)
(($(descriptors a) > 0)) || skip "/proc/PID/fd of another process can't be read here"

# learns COMMAND...: a stranger's try. It must fail, and have said nothing of the disk.
learns() {
    local found=0
    timeout 20 "$@" >learnt 2>&1 && found=1
    if ((found)) || grep -qE "$secret|$size|${uuid}|24M|49152" learnt; then
        echo "$*:" >&2
        cat learnt >&2
        return 1
    fi
}
# strangers PORT: every way in that needs no key, or has a wrong one
exports=("" replica state hashes forward/1/1 forward/2/1 wanted disk)
strangers() {
    local at=127.0.0.1:$1 name keys
    # A list has the one name that every NBD server has, and nothing about it.
    timeout 20 nbdinfo --list "nbd://$at" >learnt 2>&1 || true
    if grep -qE "$secret|$size|$uuid|export-size|replica|state|hashes" learnt; then
        cat learnt >&2
        return 1
    fi
    for name in "${exports[@]}"; do
        learns nbdinfo "nbd://$at/$name" || return 1
        learns qemu-io -f raw -c 'write -P 1 0 512' "nbd://$at/$name" || return 1
    done
    learns nbdinfo "nbds://$at" || return 1
    printf 'stranger:%064d\n' 7 >unknown.psk
    # The right name of the key, where there is one now.
    sed 's/:.*/:00112233445566778899aabbccddeeff/' "$tmp/b/state/vm1/root/psk" >wrong.psk 2>/dev/null || true
    [[ -s wrong.psk ]] || cp unknown.psk wrong.psk
    for keys in unknown wrong; do
        for name in "" replica state hashes; do
            learns nbdinfo "nbds://$(head -n 1 $keys.psk | cut -d : -f 1)@$at/$name?tls-psk-file=$tmp/$keys.psk" || return 1
        done
        learns nbdinfo --list "nbds://$(head -n 1 $keys.psk | cut -d : -f 1)@$at/?tls-psk-file=$tmp/$keys.psk" || return 1
    done
}

echo "# a server that lets anybody in is found out: the tries can succeed"
background nbdkit -f -i 127.0.0.1 -p 21888 file a/images/root.img
open_server() { nbdinfo nbd://127.0.0.1:21888 >/dev/null 2>&1; }
wait_for 20 open_server
if strangers 21888 2>/dev/null; then
    fail "the strangers' tries fail wherever they are made"
fi

echo "# a disk that is served and goes nowhere"
strangers "$(port a)" || fail "a stranger got in at the source"

echo "# while it moves"
drover migrate vm1 b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach --max-bandwidth 64K \
    --compress none >migrate.out 2>&1 &
migrate=$!
on_exit e2e_kill $migrate
copies() { [[ $(status a .replication.phase 2>/dev/null) == bulk ]] && (($(status b .replica.received_bytes) > 0)); }
wait_for 60 copies
strangers "$(port a)" || fail "a stranger got in at the source"
strangers "$(port b)" || fail "a stranger got in at the destination"

echo "# the key opens what it is for, and not the disk"
key=$(head -n 1 b/state/vm1/root/psk)
with_key() { nbdinfo --json "nbds://${key%%:*}@127.0.0.1:$(port b)/$1?tls-psk-file=$tmp/b/state/vm1/root/psk"; }
with_key state >/dev/null || fail "the key does not open the state: the tries above say nothing"
if with_key "" >/dev/null 2>&1; then fail "the disk is served over TCP"; fi
if with_key wanted >/dev/null 2>&1; then fail "an export that there is not was opened"; fi

echo "# who has opened nothing within the time for it is sent away"
head -c 1M /dev/zero >early.img
background nbdkit -f -t 4 -i 127.0.0.1 -p 21887 "$DROVER_PLUGIN" early.img handshake=1
is_listening() { exec {silent}<>/dev/tcp/127.0.0.1/21887; } 2>/dev/null
wait_for 20 is_listening
printf '\0\0\0\3' >&"$silent" # a plain client, which will not go on
timeout 20 cat <&"$silent" >/dev/null || fail "a connection that never opens an export stays"
exec {silent}>&-

echo "# a thousand that never say who they are, and some that take their time"
# crowd PORT: 450 that are silent, 450 that have begun TLS, 100 that go on with that a byte at a time
crowd() {
    exec bash -c '
        ulimit -S -n 4096
        flags="\0\0\0\3"
        starttls="IHAVEOPT\0\0\0\5\0\0\0\0"
        hello="\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" # of 512 bytes that do not come
        slow=()
        for ((i = 0; i < 1000; i++)); do
            exec {fd}<>"/dev/tcp/127.0.0.1/$1" || exit 1
            ((i < 450)) || printf "$flags$starttls" >&$fd
            ((i < 450)) || printf "$hello" >&$fd
            ((i < 900)) || slow+=($fd)
        done
        echo "all of them" >"$2"
        while sleep 0.5; do
            for fd in "${slow[@]}"; do printf "\0" >&$fd; done
        done' crowd "$1" "$2"
}
declare -A before
crowd=()
crowd_came=$SECONDS
for side in a b; do
    before[$side]=$(descriptors $side)
    crowd "$(port $side)" "$tmp/crowd.$side" 2>"crowd.$side.err" &
    crowd+=("$!")
    on_exit e2e_kill $!
done
is_crowded() { [[ -s crowd.$1 ]] && (($(descriptors "$1") >= before[$1] + 1000)); }
wait_for 60 is_crowded a
wait_for 60 is_crowded b
uri="nbd+unix:///?socket=$tmp/a/run/vm1/root.sock"
qemu-io -f raw -c 'write -P 0x5a 1M 64k' -c flush "$uri" | grep -q 'wrote 65536' || fail "the client waits for strangers"
drover ctl vm1/root set '{"max_bandwidth":0}' >/dev/null
wait $migrate || fail "the migration: $(cat migrate.out)"
[[ $(status a .role) == fenced && $(status b .role) == owner ]] || fail "roles"
# They are sent away after a minute, which a slow machine may have taken.
if ((SECONDS - crowd_came < 50)); then
    is_crowded a && is_crowded b || fail "the crowd has gone before the end"
fi
strangers "$(port b)" || fail "a stranger got in at the new owner"

echo "# and they leave nothing behind"
kill "${crowd[@]}" 2>/dev/null || true # one whose connections were ended has ended itself
is_alone() { (($(descriptors "$1") <= before[$1])); }
wait_for 30 is_alone a
wait_for 30 is_alone b
qemu-io -f raw -c 'read -P 0x5a 1M 64k' "nbd+unix:///?socket=$tmp/b/run/vm1/root.sock" | grep -q 'read 65536' ||
    fail "what the client wrote is not there"
"$tmp/at" b drover serve --stop vm1
drover serve --stop vm1
cmp a/images/root.img.fenced-* b/images/vm1/root.img || fail "the images differ"
