#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck disable=SC2154 # tmp is set by functions.sh
# drover migrate --verify: both sides as they were at the switchover, while the disk is written there; a difference is
# told, and nothing of the source is let go. --release-source: its images go, and the disk can come back.
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
# shellcheck source=test/e2e/step-functions.sh
source "$e2e_top/test/e2e/step-functions.sh"
requires drover nbdkit qemu-io jq

site a 'listen = "127.0.0.1"' 'ports = "22209-22229"'
site b 'listen = "127.0.0.1"' 'ports = "22239-22259"'
ways_to_sites "$tmp/at"

vm() { # NAME, with two disks
    local disk
    printf 'name = "%s"\nhypervisor = "none"\n' "$1" >"a/vm.d/$1.toml"
    for disk in root data; do
        dd if=/dev/urandom of="a/images/$1-$disk.img" bs=1M count=8 status=none
        printf '[[disk]]\nname = "%s"\nfile = "%s"\n' $disk "$tmp/a/images/$1-$disk.img" >>"a/vm.d/$1.toml"
    done
    drover serve "$1" >serve.out
}
migrate() { drover migrate "$1" b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach "${@:2}"; }

site a
echo "# what can't be released is said before anything is touched"
vm vm1
expect 2 drover migrate vm1 b --rsh "$tmp/at" --disk-only --verify --release-source
grep -q -- --detach err || fail "$(cat err)"
expect 2 migrate vm1 --release-source
grep -q -- --verify err || fail "$(cat err)"

echo "# verified, with the disk written there since; released; and it comes back"
cp a/images/vm1-root.img root.before
stop_at source.verify
migrate vm1 --verify --release-source --json >out 2>err &
moving=$!
reached source.verify
qemu-io -f raw -c 'write -P 7 1M 64k' "nbd+unix:///?socket=$tmp/b/run/vm1/root.sock" >/dev/null || fail "no write at b"
go_on source.verify
wait $moving || fail "status $?: $(cat out err)"
[[ $(jq -r 'select(.result?) | .result, .verified' out | xargs) == "done true" ]] || fail "$(cat out)"
[[ -z $(find a/images -name 'vm1*') ]] || fail "left: $(find a/images -name 'vm1*')"
cmp -s root.before b/images/vm1/root.img && fail "the write at b is lost"
expect 1 drover serve vm1
grep -q "has moved away" err || fail "$(cat err)"
"$tmp/at" b drover migrate vm1 a --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach --verify >out 2>err ||
    fail "it does not come back: $(cat out err)"
for disk in root data; do
    image=$("$tmp/at" a drover ctl "$tmp/a/run/vm1/$disk.ctl" status | jq -r .image)
    cmp "$image" b/images/vm1/$disk.img.fenced-* || fail "$disk is another one"
    [[ $image == "$tmp/a/images/vm1-$disk.img" ]] || fail "$disk has come back as $image"
    [[ -e $image ]] || fail "no $image"
done

echo "# a difference: told, nothing is let go, and recover finishes"
vm vm2
stop_at source.verify
migrate vm2 --verify --release-source >out 2>err &
moving=$!
reached source.verify
# Past the plugin, as a disk does that returns something else than was written.
printf x | dd of=b/images/vm2/data.img bs=1 seek=3M conv=notrunc status=none
go_on source.verify
status=0
wait $moving || status=$?
[[ $status == 4 ]] || fail "status $status: $(cat out err)"
grep -q "disk data: 1 of 128 blocks" err || fail "$(cat err)"
grep -q "at byte 3145728" err || fail "$(cat err)"
[[ -e $(echo a/images/vm2-data.img.fenced-*) ]] || fail "the image was let go: $(find a/images)"
expect 1 drover verify vm2 b --rsh "$tmp/at" --data-address 127.0.0.1
grep -q "data: 1 of 128 blocks differ" out || fail "it does not compare again: $(cat out err)"
expect 0 drover recover vm2
[[ -e $(echo a/images/vm2-data.img.fenced-*) ]] || fail "the image was let go by recover"

echo "# later: what was written since is not taken for a difference, from either side"
qemu-io -f raw -c 'write -P 7 2M 64k' -c 'write -P 8 5000000 512' "nbd+unix:///?socket=$tmp/b/run/vm2/root.sock" >/dev/null
for side in a b; do
    other=$(tr ab ba <<<$side)
    expect 1 "$tmp/at" $side drover verify vm2 "$other" --rsh "$tmp/at" --data-address 127.0.0.1
    expect_text out "root: the same in all 128 blocks, but for 2 that were written since the switchover"
    grep -q "data: 1 of 128 blocks differ, the first at byte 3145728$" out || fail "$(cat out err)"
done
"$tmp/at" b drover serve --stop vm2
"$tmp/at" b drover serve vm2
expect 1 drover verify vm2 b --rsh "$tmp/at" --data-address 127.0.0.1
expect_text out "root: 2 of 128 blocks differ"
