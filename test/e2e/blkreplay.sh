#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# blkreplay replays what a MySQL server did to its disk, each sector tagged, while the disk moves under it, and looks for
# its tags at every read, before every write and at the end. Then the same after the move, with sectors changed behind its back: it
# has to find exactly those, in the image at the destination.
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit jq blkreplay
trace=/usr/share/doc/blkreplay-examples/examples/example-load/natural/linux-mysql.load.gz
[[ -e $trace ]] || skip "blkreplay-examples is not installed"
requires_fuse

site b 'listen = "127.0.0.1"' 'ports = "22339-22359"'
site a 'listen = "127.0.0.1"' 'ports = "22309-22329"'
ways_to_sites "$tmp/at"

# The first five minutes of it. Its disk had 32 GB, of which it touches little: the 128 KiB pieces in the order in which
# they come, and the rest left out.
gunzip -c "$trace" | awk -F ';' -v OFS=';' '
    $1 + 0 == $1 && $1 < 300 {
        piece = int($2 / 256)
        if (!(piece in place)) place[piece] = pieces++
        $2 = $2 % 256 + place[piece] * 256
        print
    }' >load
# Sectors that are written once, and early.
awk -F ';' '
    $4 ~ /W/ { for (s = $2; s < $2 + $3; s++) { if (!writes[s]++) first[s] = NR } }
    END { for (s in writes) if (writes[s] == 1 && first[s] < 100) print s }' load | sort -n | awk 'NR % 40 == 0' | head -n 5 >victims
[[ $(wc -l <victims) == 5 ]] || fail "no sectors to change"

truncate -s 512M a/images/disk.img
printf 'name = "vm1"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/disk.img" >a/vm.d/vm1.toml
drover serve vm1
fuse_disk disk "nbd+unix:///?socket=$tmp/a/run/vm1/root.sock" || fail "nbdfuse"

# replay LOG SPEED: its exit status is 0 even if it has found something
replay() {
    TMPDIR=$tmp blkreplay --with-final-verify --with-ordering --no-o-direct --threads=32 --start-grace=1 --speedup="$2" \
        disk <load >"$1" 2>&1
}
# found LOG: how many tags were wrong, at the end and before it
found() {
    grep -q '^SUMMARY: checked [1-9]' "$1" || fail "it did not get to its end: $(tail -n 20 "$1")"
    echo "$(sed -n 's/^SUMMARY: .* found \([0-9]*\) errors, \([0-9]*\) mismatches$/\1+\2/p' "$1")" \
        "$(sed -n 's/^# verify errors during replay : *\([0-9]*\)$/\1/p' "$1")"
}
# tags IMAGE: what is in the victims
tags() {
    local sector
    for sector in $(cat victims); do
        dd if="$1" bs=512 skip="$sector" count=1 status=none | md5sum
    done
}

echo "# while the disk moves"
# Half a minute, which is far more than the move takes.
replay replay.log 10 &
replay=$!
on_exit e2e_kill $replay
allocated() { (($(stat -c %b a/images/disk.img) * 512 >= $1)); }
wait_for 60 allocated 20000000
# Slow enough that much is written while it goes on.
expect 0 drover migrate vm1 b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --max-bandwidth 20M --json
report=$(jq -c 'select(.event == "report") | {downtime_ms} + (.disks[0] | {captured_bytes, delta_bytes})' out)
! eventually_gone $replay || fail "it had ended before the disk had moved: $report"
wait $replay || fail "blkreplay: $(tail -n 20 replay.log)"
[[ $(found replay.log) == "0+0 0" ]] || fail "blkreplay has found wrong tags: $(found replay.log)"
(($(jq .delta_bytes <<<"$report") > 0)) || fail "nothing was written while the disk moved: $report"
[[ $("$tmp/at" b drover ctl vm1/root status | jq -r .role) == owner ]] || fail "the disk has not moved"
grep '^SUMMARY' replay.log
echo "$report"

echo "# it finds what was changed behind its back, in the image at the destination"
tags b/images/vm1/root.img >before
written() { [[ $(tags b/images/vm1/root.img | grep -cxFf before) == 0 ]]; }
replay replay.log 20 &
replay=$!
on_exit e2e_kill $replay
wait_for 60 written
for sector in $(cat victims); do
    head -c 512 /dev/urandom | dd of=b/images/vm1/root.img bs=512 seek="$sector" conv=notrunc status=none
done
! eventually_gone $replay || fail "it had ended before the sectors were changed"
wait $replay || fail "blkreplay: $(tail -n 20 replay.log)"
[[ $(found replay.log) == "5+0 0" ]] || fail "it has found other than the five sectors: $(found replay.log)"

unfuse_disk disk
drover serve --stop vm1
"$tmp/at" b drover serve --stop vm1
