#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# What is left when a migration is interrupted behind the first fence: what `drover recover` finds out from either side, with the
# other one there or gone; what it does by force, and what the other side may do afterwards.
# test: timeout=300 asan tsan-full
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io jq

site b 'listen = "127.0.0.1"' 'ports = "22139-22169"'
site a 'listen = "127.0.0.1"' 'ports = "22109-22129"'
# The way to a site; cut: it can't be reached.
cat >at <<SH
#!/bin/bash
[[ ! -e $tmp/cut ]] || { echo "no way to \$1" >&2; exit 255; }
export DROVER_CONF=$tmp/\$1/drover.toml DROVER_RUN=$tmp/\$1/run DROVER_STATE=$tmp/\$1/state
shift
exec "\$@"
SH
sed '/cut/d' at >on
chmod +x at on
export DROVER_REMOTE DROVER_TEST_STEPS=$tmp/steps
DROVER_REMOTE=$(command -v drover)
mkdir steps
at_b() { "$tmp/on" b "$@"; }

number=0
disks=(root data)
new_vm() {
    local disk
    vm=vm$((++number))
    printf 'name = "%s"\nhypervisor = "none"\n' $vm >a/vm.d/$vm.toml
    for disk in "${disks[@]}"; do
        truncate -s 8M a/images/$vm-$disk.img
        printf '[[disk]]\nname = "%s"\nfile = "%s"\n' $disk "$tmp/a/images/$vm-$disk.img" >>a/vm.d/$vm.toml
    done
    drover serve $vm >/dev/null
    write a 0x11
}
uri() { echo "nbd+unix:///?socket=$tmp/$1/run/$vm/root.sock"; }
write() { timeout 10 qemu-io -f raw -c "write -f -P $2 1M 64k" "$(uri "$1")" | grep -q 'wrote 65536'; }
reads() { qemu-io -f raw -c "read -P $2 1M 64k" "$1" 2>&1 | grep -q 'read 65536' && ! qemu-io -f raw -c "read -P $2 1M 64k" "$1" | grep -q failed; }
# A write waits (and is not answered).
held() { ! timeout 1 qemu-io -f raw -c 'write -f -P 0xee 2M 64k' "$(uri "$1")" 2>/dev/null | grep -q wrote; }
# What waited is not done for a client that has gone meanwhile.
left_undone() { [[ $(qemu-io -r -f raw -c "read -P 0xee 2M 64k" "$(uri "$1")" 2>&1) == *"verification failed"* ]]; }
of() { "$tmp/on" "$1" drover ctl $vm/root status | jq -r "$2"; }
record() { "$tmp/on" "$1" drover status $vm --json | jq -r ".vms[0].disks[0].record.$2"; }
migrate=(drover migrate --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach)

# interrupted STEP [DEAD...]: a migration stops at STEP; then the way to the other side is cut, and coordinator, guardian
# and agent, and the disks of the sites DEAD, are gone.
# With agent_lives=yes the agent is not killed, it only hears no more.
agent_lives=no
coordinator=
on_exit end_leftovers # of a test that has failed
# shellcheck disable=SC2046
end_leftovers() { kill -9 $(pgrep -f "guardian $tmp/") $([[ -z $coordinator ]] || agent) $coordinator 2>/dev/null; }
agent_at_b() { cut -d ' ' -f 4- b/state/$vm/agent.lock | jq .pid; }
agent() { pgrep -P $coordinator -f 'agent --stdio'; }
all_handed_over() {
    local disk
    for disk in "${disks[@]}"; do
        [[ $(at_b drover ctl $vm/$disk status | jq -r .replica.handed_over) == true ]] || return 1
    done
}
interrupted() {
    local step=$1 pid
    new_vm
    mkfifo "steps/$step" "steps/$step.go"
    "${migrate[@]}" $vm b >out 2>err &
    coordinator=$!
    timeout 20 cat "steps/$step" >/dev/null || fail "it did not come to $step: $(cat out err)"
    rm "steps/$step" "steps/$step.go"
    # That step is noted beside the handovers.
    [[ $step != source.fence ]] || wait_for 20 all_handed_over
    touch cut
    kill -STOP "$coordinator" # which would replace its guardian
    for pid in $(pgrep -f "guardian $tmp/a/vm.d/$vm.toml") $([[ $agent_lives == yes ]] || agent) "$coordinator"; do
        kill -9 "$pid"
        wait_for 10 eventually_gone "$pid"
    done
    wait $coordinator 2>/dev/null || true
    coordinator=
    for site in "${@:2}"; do
        for disk in "${disks[@]}"; do
            pid=$(jq .pid "$site/run/$vm/$disk.json")
            kill -9 "$pid"
            wait_for 10 eventually_gone "$pid"
        done
    done
}
end() {
    rm -f cut
    drover serve --stop $vm >/dev/null 2>&1 || true
    at_b drover serve --stop $vm >/dev/null 2>&1 || true
}

echo "# fenced, and the other side can't be asked: nothing is done, by nobody, and it says so"
interrupted source.promote
expect 3 drover recover $vm
expect_text err "no answer"
[[ $(of a .role) == fenced ]] || fail "it let go of the fence"
expect_text <(drover status $vm) "drover recover $vm"
held a || fail "a fenced disk has taken a write"
for pid in $(jq .pid a/run/$vm/*.json); do kill -9 "$pid"; wait_for 10 eventually_gone "$pid"; done
expect 3 drover serve $vm # it asks, first
held a || fail "a fenced disk has taken a write, after a restart"
expect 3 "${migrate[@]}" $vm b
echo "# it answers again, and has not been promoted: the VM goes on at the source"
rm cut
expect 0 drover recover $vm
expect_text out "goes on here"
write a 0x12 || fail "its client can't go on"
[[ ! -e b/images/$vm && ! -e b/run/$vm ]] || fail "left behind: $(find b/images b/run)"
expect 0 drover recover $vm
expect_text out "nothing is to be recovered"
expect 0 "${migrate[@]}" $vm b
reads b/images/$vm/root.img 0x12 2>/dev/null || at_b qemu-io -r -f raw -c 'read -P 0x12 1M 64k' "$(uri b)" | grep -q 'read 65536'
end

echo "# promoted, and the source has not heard of it: it belongs there"
interrupted destination.finish
expect 3 drover recover $vm
rm cut
expect 0 drover recover $vm
expect_text out "belongs to b"
[[ $(record a stage) == over && $(record b stage) == over ]] || fail "it is not over"
write b 0x13 || fail "the new owner takes no writes"
drover serve --stop $vm >/dev/null
expect 1 drover serve $vm
expect_text err "has moved away"
end

echo "# the same, found by the next start"
interrupted destination.finish
rm cut
expect 4 drover serve $vm
expect_text out "belongs to b"
end

echo "# from the destination: whole, but not promoted: kept until the source answers, and then refused, which the source finds"
interrupted source.promote b
expect 3 at_b drover recover $vm
expect_text err "the source has not been asked"
expect_text err "i-know-the-other-side-is-dead"
expect 3 at_b drover recover $vm a --rsh "$tmp/at"
expect_text err "no way to a"
expect_text <(at_b drover status $vm) "drover recover $vm"
[[ $(record b stage) == handed-over ]] || fail "what may be all that is left is given up"
rm cut
expect 0 at_b drover recover $vm a --rsh "$tmp/at"
expect_text out "The VM belongs to its source"
touch cut
[[ ! -e b/images/$vm ]] || fail "left behind: $(find b/images)"
expect 0 at_b drover recover $vm
rm cut
expect 0 drover recover $vm
write a 0x14 || fail "its client can't go on"
end

echo "# from the destination: promoted; its disks are started anew, and hold their writes until the source was asked"
interrupted destination.finish b
expect 3 at_b drover serve $vm
expect_text err "i-know-the-other-side-is-dead"
[[ $(of b .unconfirmed) == true ]] || fail "it does not know that it is in doubt"
held b || fail "a disk in doubt has taken a write"
expect 3 at_b drover recover $vm
rm cut
expect 0 at_b drover recover $vm a --rsh "$tmp/at"
expect_text out "belongs here"
write b 0x15 || fail "the owner takes no writes"
left_undone b || fail "a client's write was done after its end"
expect 0 drover recover $vm
end

# A service waits for that, and then goes on by itself.
interrupted destination.finish b
at_b drover serve --foreground $vm >served 2>&1 &
server=$!
on_exit e2e_kill $server
wait_for 20 grep -q i-know-the-other-side-is-dead served
held b || fail "a disk in doubt has taken a write"
rm cut
expect 0 drover recover $vm
wait_for 20 grep -q "$vm/root: .*replication on port" served
write b 0x15 || fail "the owner takes no writes"
kill $server
wait_for 20 eventually_gone $server
end

echo "# by force, at the source: the destination has been promoted, and returns"
interrupted destination.finish b
expect 0 drover recover $vm --i-know-the-other-side-is-dead
expect_text out "by force"
[[ $(of a '.role, .generation' | paste -sd ' ') == "owner 3" ]] || fail "no generation was burnt: $(of a '.role, .generation')"
write a 0x16 || fail "its client can't go on"
expect 3 at_b drover serve $vm
held b || fail "two owners: the side that had been given up takes writes"
rm cut
expect 0 drover recover $vm
expect_text err "it may have run there"
[[ $(record b role) == fenced && $(record b generation) == 3 ]] || fail "the destination is not told"
at_b drover serve --stop $vm >/dev/null
expect 1 at_b drover serve $vm
expect_text err "has moved away"
write a 0x17
reads "$(uri a)" 0x17 || fail "it lost a write"
expect 0 "${migrate[@]}" $vm b
end

# The same, found out from the destination.
interrupted destination.finish b
expect 0 drover recover $vm --i-know-the-other-side-is-dead
rm cut
expect 0 at_b drover recover $vm a --rsh "$tmp/at"
expect_text out "taken back by force at a"
[[ $(record b role) == fenced && $(record b generation) == 3 ]] || fail "two owners"
write a 0x17 || fail "its client can't go on"
end

echo "# by force, at the destination: the source is the older one when it returns, and yields"
interrupted source.promote a b
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
expect_text out "at generation 3"
at_b drover serve $vm >/dev/null
write b 0x18 || fail "the new owner takes no writes"
rm cut
expect 4 drover serve $vm
[[ $(record a role) == fenced ]] || fail "two owners"
expect 1 drover serve $vm
end
# Whoever did it was killed between the disks.
interrupted source.promote a
at_b drover ctl $vm/root promote "{\"migration\": \"$(record b migration)\", \"force\": true}" >/dev/null
[[ $(at_b drover ctl $vm/data status | jq -r .role) == replica ]] || fail "that took both"
expect 0 at_b drover recover $vm
[[ $(at_b drover ctl $vm/data status | jq -r '.role, .generation' | paste -sd ' ') == "owner 3" ]] || fail "the other disk does not follow"
write b 0x18 || fail "the new owner takes no writes"
end
# Its disks were promoted, and started anew since.
interrupted destination.finish a b
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
write b 0x18 || fail "the new owner takes no writes"
[[ $(of b .generation) == 3 ]] || fail "no generation was burnt"
end
# Also where it had not been fenced.
interrupted source.fence a b
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
rm cut
expect 4 drover serve $vm
[[ $(record a role) == fenced && $(record a generation) == 3 ]] || fail "two owners"
end

# Also where it had not been fenced; but not while its client is there.
interrupted source.fence b
qemu-io -f raw -c 'sleep 60000' "$(uri a)" >/dev/null 2>&1 &
client=$!
on_exit e2e_kill $client
has_client() { (($(of a .clients) > 0)); }
wait_for 10 has_client
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
rm cut
expect 3 drover recover $vm
expect_text err "both sides own the disks"
[[ $(record a role) == owner && $(record b role) == owner ]] || fail "roles: $(record a role) $(record b role)"
e2e_kill $client || true
expect 0 drover recover $vm
expect_text out "belongs to b"
[[ $(record a role) == fenced && $(record a generation) == 3 ]] || fail "two owners"
end

echo "# by force, at both: each says so, and no more"
interrupted source.promote a b
expect 0 drover recover $vm --i-know-the-other-side-is-dead
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
at_b drover serve $vm >/dev/null
write a 0x1b
write b 0x1c
rm cut
for command in "drover recover $vm" "drover serve $vm" "${migrate[*]} $vm b"; do
    expect 3 $command
    expect_text err "both sides have taken the disks by force, at generation 3"
done
[[ $(record a role) == owner && $(record b role) == owner ]] || fail "roles: $(record a role) $(record b role)"
reads "$(uri a)" 0x1b && reads "$(uri b)" 0x1c || fail "a write is lost"
end

echo "# by force, at the destination: only what is a state that the disks were in"
disks=(root)
agent_lives=yes
interrupted source.handover a
wait_for 20 eventually_gone "$(agent_at_b)"
[[ ! -e b/run/$vm/root.ctl ]] || fail "the agent has left the disk to itself"
expect 3 at_b drover recover $vm
expect 0 at_b drover recover $vm --i-know-the-other-side-is-dead
expect_text out "some moment before the end"
at_b drover serve $vm >/dev/null
reads "$(uri b)" 0x11 || fail "it is not as it was"
write b 0x18 || fail "the new owner takes no writes"
end
# Of several disks, each at a moment of its own.
disks=(root data)
interrupted source.handover a
wait_for 20 eventually_gone "$(agent_at_b)"
expect 1 at_b drover recover $vm --i-know-the-other-side-is-dead
expect_text err "different moments"
[[ -e b/images/$vm/root.img && $(record b role) == replica ]] || fail "it has touched them"
end
# One that stopped in the middle of the copy.
agent_lives=no
interrupted source.replicate a b
expect 1 at_b drover recover $vm --i-know-the-other-side-is-dead
expect_text err "not all of its disks has come"
expect 0 at_b drover recover $vm
[[ ! -e b/images/$vm ]] || fail "left behind: $(find b/images)"
end

echo "# a journal that is damaged or somebody else's is refused, and left as it is"
interrupted source.promote
rm cut
cp a/state/$vm/journal good
for damage in 's/prepare/prepaid/' 's/^/x/' '1s/"version":1/"version":2/'; do
    sed "$damage" good >a/state/$vm/journal
    cp a/state/$vm/journal damaged
    expect 1 drover recover $vm
    expect_text err "a/state/$vm/journal: "
    expect 1 "${migrate[@]}" $vm b
    cmp damaged a/state/$vm/journal || fail "it was written over"
done
echo "# without it, who knows the other side can still recover"
rm a/state/$vm/journal
expect 3 drover recover $vm
expect 0 drover recover $vm b --rsh "$tmp/at"
write a 0x19 || fail "its client can't go on"
end
interrupted destination.finish b
rm b/state/$vm/journal
expect 1 at_b drover serve $vm
expect_text err "at its source"
held b || fail "a disk in doubt has taken a write"
rm cut
expect 0 drover recover $vm
write b 0x1a || fail "the owner takes no writes"
end

echo "# one at a time, at both sides"
new_vm
mkfifo steps/source.handover steps/source.handover.go
"${migrate[@]}" $vm b >out1 2>err1 &
coordinator=$!
timeout 20 cat steps/source.handover >/dev/null
expect 1 "${migrate[@]}" $vm b
expect_text err "being migrated already"
expect 1 drover recover $vm
expect_text err "being migrated already"
expect 1 at_b drover recover $vm --i-know-the-other-side-is-dead
expect_text err "is being migrated to this host"
! at_b drover status $vm | grep -q 'drover recover' || fail "it is said to be over"
: >steps/source.handover.go
rm steps/*
wait $coordinator
coordinator=
end
