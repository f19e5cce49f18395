# SPDX-License-Identifier: GPL-2.0-or-later
# Two Xen hosts, A and B, each a QEMU process that emulates a whole machine; sourced. $hosts is the folder
# of build-hosts, $tmp a folder for this run. Nothing of a host is kept: its disk is thrown away.
#
#   host_up A|B               starts it; returns at once
#   host_wait A|B             until its dom0 answers
#   host_kill A|B             the power fails
#   on A|B COMMAND...         in its dom0, by its shell
#   put A|B FILE PATH MODE    a file into its dom0
#   fetch A|B PATH FILE       and out of it
#
# A's dom0 is 10.77.0.1, B's 10.77.0.2, on the bridge xenbr0 that their guests join: one segment, which
# is a pair of unix sockets. ssh comes in by a port on loopback. No packet reaches this machine's links.
# shellcheck shell=bash disable=SC2154

# What each is for (QEMU 7.2's emulation):
#   -smap     its iret in ring 3, where a PV kernel uses it, trips over SMAP
#   -rdtscp   an intercepted RDTSCP comes as RDTSC, which Xen does not give a PVH guest
#   eager-fpu lazily switched registers get lost between guests
host_cpu=max,-smap,-rdtscp
host_xen="com1=115200,8n1 console=com1 dom0_mem=512M,max:512M dom0_max_vcpus=1 loglvl=warning guest_loglvl=warning spec-ctrl=no,eager-fpu"
host_linux="console=hvc0 quiet mitigations=off"

host_number() { [ "$1" = A ] && echo 1 || echo 2; }
host_peer() { [ "$1" = A ] && echo B || echo A; }

host_up() {
  local host=$1 port number=$(($(host_number "$1")))
  mkdir -p "$tmp/$host"
  rm -f "$tmp/$host"/*
  for port in $(seq $((23300 + RANDOM % 2000)) 26000); do
    # bash's own sockets: one that answers is taken.
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
    qemu-system-x86_64 -name "drover-xen-$host" -accel tcg,thread=single,tb-size=256 -cpu "$host_cpu" -smp 1 -m 1024 \
      -nodefaults -display none -no-reboot -serial "file:$tmp/$host/console" \
      -kernel "$hosts/xen" -append "$host_xen" \
      -initrd "$hosts/vmlinux $host_linux drover.host=$host,$hosts/dom0" \
      -drive "file=$hosts/root.img,format=raw,if=virtio,snapshot=on" -device virtio-rng-pci \
      -netdev "user,id=way,restrict=on,hostfwd=tcp:127.0.0.1:$port-:22" \
      -device "virtio-net-pci,netdev=way,mac=52:54:00:d0:00:0$number,romfile=" \
      -netdev "dgram,id=lan,local.type=unix,local.path=$tmp/lan-$host,remote.type=unix,remote.path=$tmp/lan-$(host_peer "$host")" \
      -device "virtio-net-pci,netdev=lan,mac=52:54:00:d0:01:0$number,romfile=" \
      </dev/null >"$tmp/$host/qemu.log" 2>&1 9>&- &
    echo $! >"$tmp/$host/pid"
    sleep 0.5
    if kill -0 "$(cat "$tmp/$host/pid")" 2>/dev/null; then
      echo "$port" >"$tmp/$host/port"
      return
    fi
    grep -q "forwarding" "$tmp/$host/qemu.log" || break
  done
  cat "$tmp/$host/qemu.log" >&2
  return 1
}

host_ssh() {
  ssh -i "$hosts/key" -p "$(cat "$tmp/$1/port")" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR -o ConnectTimeout=30 -o ControlMaster=auto -o ControlPath="$tmp/$1/ssh" -o ControlPersist=900 \
    root@127.0.0.1 "${@:2}"
}

on() { host_ssh "$1" "${@:2}" </dev/null; }
put() { host_ssh "$1" "mkdir -p \$(dirname '$3') && cat >'$3' && chmod $4 '$3'" <"$2"; }
fetch() { on "$1" "cat '$2'" >"$3"; }

host_wait() {
  local tries=0
  until grep -q "drover-test: host $1 is up" "$tmp/$1/console" 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries = 900 ] || ! kill -0 "$(cat "$tmp/$1/pid")" 2>/dev/null; then
      tail -n 30 "$tmp/$1/console" "$tmp/$1/qemu.log" >&2
      return 1
    fi
    sleep 0.2
  done
  # sshd goes into the background before it listens.
  for tries in $(seq 30); do
    ! on "$1" true 2>/dev/null || return 0
    sleep 1
  done
  return 1
}

host_kill() {
  local pid
  [ -e "$tmp/$1/pid" ] || return 0
  pid=$(cat "$tmp/$1/pid")
  [ ! -S "$tmp/$1/ssh" ] || ssh -O exit -o ControlPath="$tmp/$1/ssh" x 2>/dev/null || true
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  rm -f "$tmp/$1/pid" "$tmp/lan-$1"
}
