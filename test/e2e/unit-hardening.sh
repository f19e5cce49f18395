#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# conf/drover@.service: what systemd says of it; and that the disks are served, written, fenced and found again with the
# capabilities, the read-only folders and the system calls that it leaves. Where no systemd runs these are set by
# other means; the filter for system calls is compared with what strace sees.
# test: timeout=120
# test: release
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires drover nbdkit nbdinfo jq qemu-io setpriv socat unshare strace systemd-analyze
[[ $(id -u) == 0 ]] || skip "root is needed"
unshare -m true 2>/dev/null || skip "no mount namespaces here"

unit=$e2e_top/conf/drover@.service
score() { systemd-analyze security --offline=true --no-pager --threshold="$2" "$1" >"$tmp/score" 2>&1; }
systemd-analyze security --help | grep -q -- --offline || skip "systemd-analyze has no --offline"

echo "# the score is below 3.0, and would not be without"
score "$unit" 29 || fail "$(grep -a 'exposure level' score)"
sed '/^# What it may do/,/^$/d' "$unit" >drover@bare.service
if score "$tmp/drover@bare.service" 29; then fail "any unit passes"; fi
# As installed; there is no manual page to be found, and no program, where drover is only built.
sed "s|/usr/bin/drover|$(command -v drover)|; /^Documentation/d" "$unit" >drover@vm1.service
systemd-analyze verify "$tmp/drover@vm1.service" 2>verified || fail "$(cat verified)"
[[ ! -s verified ]] || fail "$(cat verified)"

# setting NAME: all its values
setting() { sed -n "s/^$1=//p" "$unit" | tr '\n' ' '; }
for kept in KillMode=process Type=notify RuntimeDirectoryPreserve=yes TimeoutStopSec=infinity; do
    grep -qx "$kept" "$unit" || fail "$kept is missing: disks would end with the unit"
done

# ---- the unit's process, by other means

capabilities=$(setting CapabilityBoundingSet | tr 'A-Z' 'a-z' | sed 's/cap_//g')
bounding=-all
for capability in $capabilities; do bounding+=,+$capability; done
# In a mount namespace of its own as with ProtectSystem=full, ProtectKernelTunables=, ProtectControlGroups=
# and ProtectHome=read-only.
cat >confined <<SH
#!/bin/bash
for folder in /usr /boot /etc /home /root /proc/sys /sys; do
    [[ ! -d \$folder || -L \$folder ]] || { mount --rbind "\$folder" "\$folder" && mount -o remount,bind,ro "\$folder"; } || exit 99
done
umask $(setting UMask)
ulimit -c $(setting LimitCORE)
exec strace -f -qq -o "\$TRACE" setpriv --bounding-set $bounding --no-new-privs "\$@"
SH
chmod +x confined
confined() { TRACE=$tmp/trace.$1 unshare -m --propagation slave "$tmp/confined" "${@:2}"; }

site a 'listen = "127.0.0.1"' 'ports = "22380-22399"' "socket-group = \"$(id -gn nobody)\""
site b 'listen = "127.0.0.1"' 'ports = "22400-22419"'
ways_to_sites "$tmp/at"

# An image of another user, in a folder that is closed to others, and a block device if one can be had.
site a
mkdir -m 0700 a/images/theirs
truncate -s 32M a/images/theirs/vm1.img
chown -R nobody a/images/theirs
chmod 0600 a/images/theirs/vm1.img
printf 'name = "vm1"\nhypervisor = "none"\n[[disk]]\nname = "root"\nfile = "%s"\n' "$tmp/a/images/theirs/vm1.img" >a/vm.d/vm1.toml
truncate -s 16M loop.img
disks=root
if loop=$(losetup --show -f loop.img 2>/dev/null); then
    on_exit losetup -d "$loop"
    printf '[[disk]]\nname = "data"\nfile = "%s"\n' "$loop" >>a/vm.d/vm1.toml
    disks="root data"
else
    echo "(no loop device: the block device is not tried)"
fi
sock() { echo "nbd+unix:///?socket=$tmp/a/run/vm1/$1.sock"; }
pid_of() { jq .pid "a/run/vm1/$1.json"; }
# foreground RUN: as ExecStart= does it, until it says that it is ready
notified() { [[ -s notified ]]; }
foreground() {
    : >notified
    rm -f notify
    background socat -u UNIX-RECV:"$tmp/notify" "OPEN:$tmp/notified,append"
    listener=$pid
    wait_for 10 test -S notify
    NOTIFY_SOCKET=$tmp/notify confined "$1" drover serve --foreground vm1 >"served.$1" 2>&1 &
    foreground=$!
    on_exit e2e_kill $foreground
    wait_for 30 notified
    e2e_kill "$listener" || true
}
write_all() {
    for disk in $disks; do
        qemu-io -f raw -c "write -P $1 1M 64k" -c flush -c "write -z 2M 64k" -c 'discard 3M 64k' -c "write -f -P $1 4M 4k" \
            "$(sock $disk)" >/dev/null
    done
}

echo "# served with no more than that"
foreground first
first=$(pid_of root)
mask=$((16#$(sed -n 's/^CapEff:\s*//p' "/proc/$first/status")))
((mask & 1 && !(mask & 1 << 21))) || fail "the process of the disk is not confined"
[[ $(sed -n 's/^NoNewPrivs:\s*//p' "/proc/$first/status") == 1 ]] || fail "the process of the disk may get new privileges"
[[ $(stat -c '%a %G' a/run/vm1/root.sock) == "660 $(id -gn nobody)" ]] || fail "$(stat a/run/vm1/root.sock)"
chmod 0755 . a a/run
setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups nbdinfo --size "$(sock root)" >/dev/null ||
    fail "the group of socket-group is not let in"
write_all 0x11

[[ $(sed -n 's/^Seccomp:\s*//p' "/proc/$first/status") == 2 ]] || fail "the process of the disk has no filter: $(cat a/state/vm1/root/log)"

echo "# it reads no keys but its own, whatever a link says"
if grep -q 'not confined, files' a/state/vm1/root/log; then
    echo "(no Landlock here: not tried)"
else
    printf 'user:%s\n' "$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')" >others
    hashes() { nbdinfo --size "nbds://user@127.0.0.1:$(jq .port a/run/vm1/root.json)/hashes?tls-psk-file=$tmp/others"; }
    cp others a/state/vm1/root/psk
    expect 0 hashes
    ln -sf "$tmp/others" a/state/vm1/root/psk
    expect 1 hashes
    install -m 0600 /dev/null a/state/vm1/root/psk
fi

echo "# its processes outlive the main one, and are found again"
main=$(pgrep -f "^drover serve --foreground vm1$")
kill -9 "$main"
wait_for 20 eventually_gone "$main"
write_all 0x22
foreground second
[[ $(pid_of root) == "$first" ]] || fail "the disk was started anew"
expect_text served.second "already"

echo "# fenced: renamed, its permissions taken, its marker written"
expect 0 drover migrate vm1 b --rsh "$tmp/at" --data-address 127.0.0.1 --disk-only --detach
[[ $(drover ctl vm1/root status | jq -r .role) == fenced ]] || fail "it is not fenced"
fenced=$(compgen -G "a/images/theirs/vm1.img.fenced-*")
[[ $(stat -c %a "$fenced") == 4[0-9][0-9] && ! -e a/images/theirs/vm1.img ]] || fail "$(stat "$fenced")"
qemu-io -r -f raw -c 'read -P 0x22 1M 64k' -c 'read -P 0 2M 64k' b/images/vm1/root.img | grep -q 'read 65536' ||
    fail "what was written is not at the destination"

echo "# ExecStop="
confined stop drover serve --stop vm1 >out 2>&1 || fail "$(cat out)"
wait $foreground || true
[[ ! -e a/run/vm1 ]] || fail "left behind: $(ls a/run/vm1)"
./at b drover serve --stop vm1

echo "# no system call but those of the filter"
# set NAME: its calls
members() {
    local name
    for name in $(systemd-analyze syscall-filter --no-pager "$1" | sed 1d | grep -v '#'); do
        if [[ $name == @* ]]; then members "$name"; else echo "$name"; fi
    done
}
: >allowed
while read -r line; do
    for word in ${line#\~}; do
        if [[ $word == @* ]]; then members "$word"; else echo "$word"; fi
    done | sort -u >group
    if [[ $line == \~* ]]; then sort -u allowed | comm -23 - group >next; else sort -u allowed group >next; fi
    mv next allowed
done < <(sed -n 's/^SystemCallFilter=//p' "$unit")
# From its program's start on: before that it is setpriv, which asks for more.
calls() {
    awk 'FNR == 1 { started = 0 }
         /execve\("[^"]*drover"/ && / = 0$/ { started = 1 }
         started { sub(/^[0-9]+ +/, ""); sub(/^<\.\.\. /, ""); if (match($0, /^[a-z_0-9]+/)) print substr($0, 1, RLENGTH) }' trace.* | sort -u
}
calls >used
grep -qx pwrite64 used || grep -qx io_uring_enter used || fail "the trace lacks the disk's writes: $(tr '\n' ' ' <used)"
grep -qx fsetxattr used || grep -qx setxattr used || fail "the trace lacks the marker: $(tr '\n' ' ' <used)"
beyond=$(comm -13 allowed used)
[[ -z $beyond ]] || fail "these are not allowed: $beyond"
if grep -qxE 'mount|init_module|reboot|ptrace|bpf' allowed; then fail "the list of what is allowed is wrong"; fi
