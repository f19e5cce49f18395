#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Migrations of a small disk by the hundred, first such that are vetoed when the disk is in sync, then such that move it
# to and fro. Nothing grows by it: no descriptors, threads or memory of the process that serves the disk, no files, no
# processes; tombstones are bounded. A disk that comes back gets a new process, so it is the first ones that show leaks of one.
# DROVER_ROUNDS (default 500) times two moves and a migration that is vetoed.
# test: full release timeout=3600
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit jq qemu-io

rounds=${DROVER_ROUNDS:-500}
site b 'listen = "127.0.0.1"' 'ports = "22439-22459"'
site a 'listen = "127.0.0.1"' 'ports = "22409-22429"'
ways_to_sites "$tmp/at"

# Memory may grow by this much: an allocator that keeps what it has been given, caches of libraries.
tolerance_kib=4096

head -c 4M /dev/urandom >a/images/disk.img
printf '%s\n' 'name = "vm1"' 'hypervisor = "none"' '[[disk]]' 'name = "root"' "file = \"$tmp/a/images/disk.img\"" \
    '[hooks]' "pre-switchover = [\"test\", \"!\", \"-e\", \"$tmp/veto\"]" >a/vm.d/vm1.toml
drover serve vm1
migrate() { "$tmp/at" "$1" drover migrate vm1 "$2" --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach >log 2>&1; }
moves() { migrate "$1" "$2" || fail "from $1 to $2: $(cat log)"; }
vetoed() {
    touch veto
    ! migrate a b || fail "it was not vetoed"
    grep -q 'pre-switchover' log || fail "another failure than the veto: $(cat log)"
    rm veto
}

server() { jq .pid "$tmp/$1/run/vm1/root.json"; }
# resources SITE: of the process that serves the disk there: descriptors, threads, KiB
resources() {
    local process
    process=/proc/$(server "$1")
    echo "$(find "$process/fd" -mindepth 1 | wc -l) $(find "$process/task" -mindepth 1 -maxdepth 1 | wc -l)" \
        "$(awk '/^RssAnon/ { print $2 }' "$process/status")"
}
# Names, without the generation that one has, and how large.
files() { find a b -type f -o -type s | sed 's/fenced-[0-9]*$/fenced-G/' | sort; }
bytes() { du -cb a/state b/state a/run b/run | awk 'END { print $1 }'; }
# Those of either site, which their environment tells.
processes() {
    local process count=0
    for process in $(pgrep -x 'drover|nbdkit'); do
        ! grep -qzF "DROVER_RUN=$tmp/" "/proc/$process/environ" 2>/dev/null || count=$((count + 1))
    done
    echo $count
}

(($(processes) > 0)) || skip "/proc/PID/environ of another process can't be read here"

# not_more WHAT BEFORE AFTER [TOLERANCE]
not_more() {
    echo "  $1: $2, then $3"
    (($3 <= $2 + ${4:-0})) || fail "$1 grow: $2, then $3"
}
compare() {
    local fds threads kib now_fds now_threads now_kib
    read -r fds threads kib <<<"$1"
    read -r now_fds now_threads now_kib <<<"$2"
    not_more descriptors "$fds" "$now_fds"
    not_more threads "$threads" "$now_threads"
    not_more "KiB of memory" "$kib" "$now_kib" $tolerance_kib
}
tombstones() { tail -n +2 b/state/vm1/root/record | jq '.tombstones | length'; }
took() { echo "  $(((${EPOCHREALTIME/[.,]/} - started) / 1000 / $1)) ms each"; }

echo "# $rounds migrations of the same process are vetoed"
for ((i = 0; i < 70; i++)); do # until there are as many tombstones as there may be
    vetoed
done
before=$(resources a)
files >files.before
bytes=$(bytes)
processes=$(processes)
pid=$(server a)
started=${EPOCHREALTIME/[.,]/}
for ((i = 0; i < rounds; i++)); do
    vetoed
done
took "$rounds"
[[ $(server a) == "$pid" ]] || fail "another process serves the disk"
compare "$before" "$(resources a)"
not_more processes "$processes" "$(processes)"
not_more bytes "$bytes" "$(bytes)" 256 # numbers with more digits
not_more tombstones 64 "$(tombstones)"
files | diff files.before - || fail "other files than before"

echo "# $((2 * rounds)) moves"
qemu-io -f raw -c 'write -P 0x5a 1M 4k' -c flush "nbd+unix:///?socket=$tmp/a/run/vm1/root.sock" >/dev/null
sum=$(sha256sum <a/images/disk.img)
for ((i = 0; i < 3; i++)); do
    moves a b
    moves b a
done
before=$(resources a)
files >files.before
bytes=$(bytes)
processes=$(processes)
started=${EPOCHREALTIME/[.,]/}
for ((i = 0; i < rounds; i++)); do
    moves a b
    moves b a
done
took $((2 * rounds))
compare "$before" "$(resources a)"
not_more processes "$processes" "$(processes)"
not_more bytes "$bytes" "$(bytes)" 256
not_more tombstones 64 "$(tombstones)"
files | diff files.before - || fail "other files than before"
vetoed

drover serve --stop vm1
"$tmp/at" b drover serve --stop vm1
[[ $(sha256sum <a/images/disk.img) == "$sum" ]] || fail "the disk has changed on its way"
[[ $(processes) == 0 ]] || fail "processes are left"
