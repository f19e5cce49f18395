#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# A disk that was moved with --disk-only and is forwarded, for a client that writes all the time: either server is
# killed, or both, or stopped; the client sees no error, and every write that it got an answer to is
# at the destination.
# test: timeout=200 asan tsan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/writer-functions.sh
source "$e2e_top/test/e2e/writer-functions.sh"
requires drover nbdkit qemu-io jq

site b 'listen = "127.0.0.1"' 'ports = "22339-22359"'
site a 'listen = "127.0.0.1"' 'ports = "22309-22329"'
ways_to_sites "$tmp/at"
printf 'name = "vm1"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/root.img" >a/vm.d/vm1.toml
truncate -s 16M a/images/root.img
head -c 2M /dev/urandom | dd of=a/images/root.img bs=1M seek=12 conv=notrunc status=none

at() { "$tmp/at" "$@"; }
server() { jq .pid "$tmp/$1/run/vm1/root.json"; }
killed() {
    local pid
    pid=$(server "$1")
    kill -9 "$pid"
    wait_for 10 eventually_gone "$pid"
}
goes_on() { wait_for 30 has_acknowledged $(($(acknowledged) + 50)); }
stands_still() {
    local before
    sleep 0.5 # what was under way
    before=$(acknowledged)
    sleep 1
    (($(acknowledged) == before)) || fail "a write was answered by nobody"
}
role() { at "$1" drover ctl vm1/root status | jq -r .role; }

drover serve vm1
start_writer "$tmp/a/run/vm1/root.sock"
drover migrate vm1 b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only >migrate.out 2>&1 || fail "$(cat migrate.out)"
goes_on
[[ "$(role a) $(role b)" == "forwarding owner" ]] || fail "roles: $(role a) $(role b)"

echo "# the destination's server is killed, and comes back"
for _ in 1 2; do
    killed b
    stands_still
    at b drover serve vm1
    goes_on
done

echo "# the source's, and the client connects again"
for _ in 1 2; do
    killed a
    drover serve vm1
    goes_on
    [[ $(role a) == forwarding ]] || fail "role: $(role a)"
done

echo "# both, the source's back first"
killed a
killed b
drover serve vm1
stands_still
at b drover serve vm1
goes_on

echo "# the destination's is stopped, as an operator does, and started again"
at b drover serve --stop vm1
stands_still
at b drover serve vm1
goes_on

stop_writer
drover serve --stop vm1
at b drover serve --stop vm1
check_writes b/images/vm1/root.img
cmp -s <(head -c 8192000 b/images/vm1/root.img) <(head -c 8192000 a/images/root.img.fenced-*) &&
    fail "nothing was written at the destination: this test sees nothing"
cmp -i 12M -n 4M b/images/vm1/root.img a/images/root.img.fenced-* || fail "the rest of the images differs"
