#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# What goes past the plugin to the image of a source that was fenced: while its process is there, and after a reboot that has
# left nothing but files; while nobody knows yet whose the disk is, and after the move. docs/safety.md has the list.
# test: timeout=120 release
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit qemu-io qemu-img qemu-system-x86_64 losetup setpriv jq
[[ $(id -u) == 0 ]] || skip "loop devices need root"

site b 'listen = "127.0.0.1"' 'ports = "22239-22269"'
site a 'listen = "127.0.0.1"' 'ports = "22209-22229"'
cat >"$tmp/at" <<SH2
#!/bin/bash
[[ ! -e $tmp/cut ]] || { echo "no way to \$1" >&2; exit 255; }
export DROVER_CONF=$tmp/\$1/drover.toml DROVER_RUN=$tmp/\$1/run DROVER_STATE=$tmp/\$1/state
shift
exec "\$@"
SH2
chmod +x at
chmod 755 "$tmp" a a/images
export DROVER_REMOTE DROVER_TEST_STEPS=$tmp/steps
DROVER_REMOTE=$(command -v drover)
mkdir steps
image=$tmp/a/images/vm.img
fenced=$image.fenced-2
migrate=(drover migrate vm b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach)
uri="nbd+unix:///?socket=$tmp/a/run/vm/root.sock"

# The VM's own start, as its unit has it: the disks, and then QEMU on them.
cat >unit-of-vm <<SH2
#!/bin/bash
set -e
drover serve vm
timeout 20 qemu-io -f raw -c 'write -f -P 0xbb 0 64k' "$uri" # in the place of the guest
SH2
# And one that knows nothing of drover.
cat >old-unit-of-vm <<SH2
#!/bin/bash
exec timeout 20 qemu-system-x86_64 -nodefaults -display none -S -qmp stdio -drive file=$image,format=raw,if=virtio <<<'{"execute": "qmp_capabilities"} {"execute": "quit"}'
SH2
chmod +x unit-of-vm old-unit-of-vm

new_vm() {
    rm -rf a/images/vm* b/images/vm a/state/vm b/state/vm a/run/vm b/run/vm cut
    head -c 4M /dev/urandom >"$image"
    chown 65534 "$image" # who runs the VM
    printf 'name = "vm"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$image" >a/vm.d/vm.toml
    ./old-unit-of-vm >/dev/null 2>&1 || fail "the old unit would not have worked before either"
    drover serve vm >/dev/null
    cp a/state/vm/root/record record.before
}
# All of them are refused, and nothing of the image changes.
refused() {
    local message=$1
    shift
    if "$@" >out 2>err; then
        fail "this could be done: $*"
    fi
    cat out >>err
    expect_text err "$message"
    unchanged "$*"
}
unchanged() {
    [[ $(sha256sum <"$fenced") == "$content" && ! -e $image ]] || fail "the fenced image was changed by: $*"
}
qemu() { timeout 20 qemu-system-x86_64 -nodefaults -display none -S -qmp stdio -drive "file=$1,format=raw,if=virtio" <<<'{"execute": "qmp_capabilities"} {"execute": "quit"}'; }
user() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
export -f qemu
nbdkit_drover() { timeout 20 nbdkit -f -U "$tmp/again.sock" "$DROVER_PLUGIN" "control=$tmp/again.ctl" "$@"; }
at_old_path() {
    refused "No such file" qemu "$image"
    refused "No such file" qemu-img check -f raw "$image"
    refused "No such file" qemu-img resize -f raw "$image" 8M
    refused "No such file" qemu-io -f raw -c 'write -P 0xbb 0 64k' "$image"
    refused "No such file" losetup --find --show "$image"
    refused "failed to setup loop device" mount -o loop "$image" /mnt
    refused "No such file" ./old-unit-of-vm
    refused "marked" nbdkit_drover "$fenced"
}
without_privilege() {
    refused "ermission denied" user bash -c "qemu '$fenced'"
    refused "ermission denied" user qemu-io -f raw -c 'write -P 0xbb 0 64k' "$fenced"
    refused "ermission denied" user dd if=/dev/zero "of=$fenced" bs=512 count=1 conv=notrunc
}
while_locked() {
    refused 'lock' qemu "$fenced"
    refused 'lock' qemu-img resize -f raw "$fenced" 8M
    refused 'lock' qemu-io -f raw -c 'write -P 0xbb 0 64k' "$fenced"
    refused 'another process serves this disk' nbdkit_drover "$image" "state=$tmp/a/state/vm/root"
}
# It is served, and takes no write.
held() {
    ! timeout 2 qemu-io -f raw -c 'write -f -P 0xbb 0 64k' "nbd+unix:///?socket=$1" >out 2>&1 || fail "it was written: $(cat out)"
    timeout 10 qemu-io -r -f raw -c 'read 0 64k' "nbd+unix:///?socket=$1" | grep -q 'read 65536' || fail "it is not served"
    unchanged "a client of the plugin"
}
# Files are all that is left.
reboot() {
    local pid
    for pid in $(jq .pid a/run/*/*.json); do
        kill -9 "$pid"
        wait_for 10 eventually_gone "$pid"
    done
    rm -r a/run/*
}
owners() { echo "$(drover status vm --json | jq -r '.vms[0].disks[0].record.role') $("$tmp/at" b drover status vm --json | jq -r '.vms[0].disks[0].record.role')"; }

echo "# fenced, and nobody knows yet whether the destination was promoted"
new_vm
mkfifo steps/source.promote steps/source.promote.go
"${migrate[@]}" >out 2>err &
coordinator=$!
timeout 20 cat steps/source.promote >/dev/null || fail "it did not come to the fence: $(cat out err)"
rm steps/*
touch cut
kill -STOP $coordinator # which would replace its guardian
for pid in $(pgrep -f "guardian $tmp/a/vm.d/vm.toml") $coordinator; do
    kill -9 "$pid"
    wait_for 10 eventually_gone "$pid"
done
wait $coordinator 2>/dev/null || true
wait_for 10 test -e "$fenced"
content=$(sha256sum <"$fenced")
at_old_path
without_privilege
while_locked
refused "no way to b" ./unit-of-vm
echo "# the same after a reboot"
reboot
at_old_path
without_privilege
refused "no way to b" ./unit-of-vm
held a/run/vm/root.sock # as the unit has left it
reboot
cp "$fenced" "$image" # somebody helps himself
expect 1 drover serve vm
expect_text err "both $fenced and $image are there"
rm "$image"
rm cut
expect 0 drover recover vm
[[ -e $image && $(sha256sum <"$image") == "$content" ]] || fail "it is not back as it was"
./unit-of-vm >/dev/null
drover serve --stop vm >/dev/null

echo "# moved"
new_vm
expect 0 "${migrate[@]}"
[[ $(owners) == "fenced owner" ]] || fail "owners: $(owners)"
cp a/state/vm/root/record record.now
content=$(sha256sum <"$fenced")
at_old_path
without_privilege
while_locked
refused "has moved away" ./unit-of-vm
echo "# the same after a reboot"
reboot
at_old_path
without_privilege
refused "has moved away" ./unit-of-vm
refused "has moved away" drover serve --foreground vm
refused "are there: the record is of the first" nbdkit_drover "$fenced" "state=$tmp/a/state/vm/root"
echo "# the plugin itself serves it, and takes no write"
background nbdkit -f -U "$tmp/again.sock" "$DROVER_PLUGIN" "control=$tmp/again.ctl" "$image" "state=$tmp/a/state/vm/root"
again=$pid
wait_for 10 test -S again.ctl
held again.sock
kill -9 $again
wait_for 10 eventually_gone $again
echo "# a record of before the move, with the image as it is, and put back under its name; a copy; another machine"
cp record.before a/state/vm/root/record
refused "no such file" drover serve vm
mv "$fenced" "$image"
expect 1 drover serve vm
expect_text err "an old copy of the record was put back"
mv "$image" "$fenced"
cp record.now a/state/vm/root/record
cp --preserve=xattr "$fenced" copy.img
refused "is missing" nbdkit_drover "$tmp/copy.img"
mkdir other
cp record.now other/record
refused "are there: the record is of the first" nbdkit_drover "$tmp/copy.img" "state=$tmp/other"
cp --no-preserve=all "$fenced" plain.img
cp record.before other/record # both from a backup
refused "another file than the one" nbdkit_drover "$tmp/plain.img" "state=$tmp/other"
rm other/record
refused "is missing" nbdkit_drover "$fenced" "state=$tmp/other"
[[ $(owners) == "fenced owner" ]] || fail "owners: $(owners)"

# So that docs/safety.md stays true of these as well.
echo "# what root can do when no process has the image: nothing keeps it from that"
device=$(losetup --find --show "$fenced")
on_exit losetup -d "$device"
dd if=/dev/zero of="$device" bs=4k count=1 conv=fsync status=none
[[ $(sha256sum <"$fenced") != "$content" ]] || fail "a loop device can't write it any more: docs/safety.md"
qemu-io -f raw -c 'write -P 0xbb 0 64k' "$fenced" | grep -q 'wrote 65536' || fail "QEMU can't write it any more: docs/safety.md"
echo "# and without its attributes a copy is a disk of its own"
background nbdkit -f -U "$tmp/plain.sock" "$DROVER_PLUGIN" "control=$tmp/plain.ctl" "$tmp/plain.img"
wait_for 10 test -S plain.ctl
[[ $(drover ctl "$tmp/plain.ctl" status | jq -r .role) == owner ]] || fail "a copy without marker is noticed: docs/safety.md"
