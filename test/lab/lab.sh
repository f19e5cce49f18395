# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The lab's functions, to be sourced: two sites with drover on each (sites), a real guest that writes
# records (guest/), its client outside. Used by the quickstart and by test/e2e.
#
# Before: LAB_BUILD is the build folder (targets `lab`, and `drover` with the plugin where drover is
# used), LAB a new, empty directory (mktemp -d /tmp/NAME.XXXXXX: paths of sockets must stay short).
# After, whatever happened: lab_down, which ends all that runs inside and removes $LAB.
#
#   lab_up [KEY=VALUE...]              sites up (settings of the WAN link), guest built, drover.toml made
#   $LAB/at SITE COMMAND...            runs a command at src or dst with that site's drover; it is
#                                      also the --rsh of a migration: --rsh "$LAB/at" dst
#   lab_make_vm NAME DISK=SIZE[:MIB]...  images with MIB of data each, and the VM file at src; its hooks turn
#                                      the route, or with LAB_NETWORK=tunnel a tunnel keeps its address
#   lab_image SITE VM DISK             where a site has its image of a disk
#   lab_start_guest NAME SITE SOCKET... [-- WORD...]
#                                      the guest, on NBD sockets; WORDs go to its kernel (guest/init)
#   lab_monitor SITE COMMAND [JSON]    QMP, on a monitor that drover does not use
#   lab_start_client [NAME]            watches the guest from now on; its report: $LAB/NAME.json
#   lab_wait_acknowledged N [NAME]     until N more records than now are acknowledged
#   lab_stop_client [NAME]             status 1 if a connection broke
#   lab_fetch                          the guest's web page, as the client gets it
#   lab_poweroff SITE                  the guest shuts down cleanly; returns when QEMU has ended
#   lab_check_records IMAGE N          filesystem clean, records 1..N on it; prints JSON
#   lab_check_switchover BEFORE LOG AFTER  image BEFORE plus the writes of LOG is image AFTER
set -Eeuo pipefail

LAB_SOURCE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
LAB_VM_ADDRESS=10.1.0.10
LAB_VM_MAC=02:00:00:00:00:10
# Not a multiple of 256 KiB: QEMU before 9.0 loses track of writes without KVM (migrator/drivers/qemu_outgoing.cpp).
LAB_MEMORY=${LAB_MEMORY:-262152K}
# KVM, where it works, is faster, but a guest under TCG runs everywhere.
LAB_ACCELERATOR=${LAB_ACCELERATOR:-tcg,thread=multi}

lab_fail() {
  echo "lab: $*" >&2
  return 1
}

lab_sites() { "$LAB_SOURCE/sites" --dir "$LAB/net" "$@"; }
lab_client_program() { "$LAB_BUILD/test/lab/lab-client" "$@"; }

# lab_wait SECONDS COMMAND...: until it succeeds
lab_wait() {
  local until=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
  until "${@:2}"; do
    [ "${EPOCHREALTIME/[.,]/}" -lt $until ] || return 1
    sleep 0.05
  done
}

# lab_json FILE PATH: a value of a JSON file, "" if it is not there (yet)
lab_json() { jq -r "$2 // empty" "$1" 2>/dev/null || true; }

# The words of QEMU's command at a site, one a line; what differs from VM to VM is in braces, as
# drover.toml has it. Source and destination must have the same machine, so both are made here.
# lab_qemu_words SITE KERNEL-WORDS
lab_qemu_words() {
  printf '%s\n' qemu-system-x86_64 -name '{vm}' -accel "$LAB_ACCELERATOR" -machine pc-i440fx-7.2 \
    -m '{memory}' -nodefaults -no-user-config -display none -serial "file:$LAB/$1/console.log" \
    -kernel "$LAB/guest/kernel" -initrd "$LAB/guest/initrd" \
    -append "console=ttyS0 quiet panic=1 addr=$LAB_VM_ADDRESS/24 gw=10.1.0.1 $2" -no-reboot \
    -qmp 'unix:{qmp},server=on,wait=off' -qmp "unix:$LAB/$1/monitor,server=on,wait=off"
}

# What drover.toml repeats for each disk. At the destination every write of the guest is logged as
# well (before it goes to the disk): lab_check_switchover needs that.
lab_disk_words() {
  local backend=disk
  [ "$2" = source ] || backend=nbd
  printf '%s\n' -blockdev "driver=nbd,node-name=$backend{disk.index},server.type=unix,server.path={disk.socket},reconnect-delay=60,discard=unmap"
  [ "$2" = source ] || printf '%s\n' \
    -blockdev "driver=file,node-name=log{disk.index},filename=$LAB/$1/writes-{disk.index}.log" \
    -blockdev "driver=blklogwrites,node-name=disk{disk.index},file=nbd{disk.index},log=log{disk.index},discard=unmap"
  printf '%s\n' -device 'virtio-blk-pci,drive=disk{disk.index}'
}

lab_nic_words() {
  printf '%s\n' -netdev 'tap,id=net{nic.index},ifname=tap0,script=no,downscript=no' \
    -device 'virtio-net-pci,netdev=net{nic.index},mac={nic.mac},romfile='
}

# Lines to a TOML array of strings.
lab_toml_array() { jq -Rcn '[inputs]'; }

lab_write_site() {
  local site=$1 address=$2 index
  mkdir -p "$LAB/$site"/{run,state,images,vm.d}
  for index in 0 1 2 3; do : >"$LAB/$site/writes-$index.log"; done
  cat >"$LAB/$site/drover.toml" <<TOML
images = "$LAB/$site/images"
listen = "$address"
ports = "10809-10840"
bridges = ["br0"]

[tunnel]
port = "tap{nic.index}"

[hypervisor.qemu]
command = $(lab_qemu_words "$site" "" | lab_toml_array)
disk-arguments = $(lab_disk_words "$site" destination | lab_toml_array)
nic-arguments = $(lab_nic_words | lab_toml_array)
TOML
}

lab_up() {
  export DROVER_LAB_BIN=$LAB_BUILD/test/lab
  "$LAB_SOURCE/guest/build-guest" "$LAB/guest"
  lab_sites up "$@"
  lab_write_site src 10.8.0.1
  lab_write_site dst 10.8.0.2
  cat >"$LAB/at" <<SH
#!/bin/bash
# Runs a command at a site of this lab: at src|dst COMMAND...
lab=$(printf %q "$LAB") build=$(printf %q "$LAB_BUILD") sites=$(printf %q "$LAB_SOURCE/sites")
site=\$1; shift
export PATH=\$build/migrator:\$PATH DROVER_CONF=\$lab/\$site/drover.toml DROVER_RUN=\$lab/\$site/run \\
  DROVER_STATE=\$lab/\$site/state DROVER_PLUGIN=\$build/nbd-proxy/nbdkit-drover-plugin.so \\
  DROVER_TUNNEL=\$build/tunnel/drover-tunnel
exec "\$sites" --dir "\$lab/net" in "\$site" "\$@"
SH
  chmod +x "$LAB/at"
}

# Also when lab_up came only half the way, and when called again; of another lab with its directory.
lab_down() {
  local dir=${1:-$LAB}
  [ -d "$dir" ] || return 0
  "$LAB_SOURCE/sites" --dir "$dir/net" down
  rm -rf "$dir"
}

# Where a site has its image of a disk.
lab_image() { echo "$LAB/$1/images/$2/$3.img"; }

lab_make_vm() {
  local name=$1 disk image
  local file="$LAB/src/vm.d/$name.toml"
  printf '%s\n' "name = \"$name\"" 'hypervisor = "qemu"' >"$file"
  for disk in "${@:2}"; do
    image=$(lab_image src "$name" "${disk%%=*}")
    mkdir -p "${image%/*}"
    disk+=:0
    local size=${disk#*=}
    local content=${size#*:}
    "$LAB_SOURCE/guest/make-disk" "$image" "${size%%:*}" "${content%%:*}"
    printf '%s\n' '[[disk]]' "name = \"${disk%%=*}\"" "file = \"$image\"" >>"$file"
  done
  cat >>"$file" <<TOML
[[nic]]
mac = "$LAB_VM_MAC"
bridge = "br0"
addresses = ["$LAB_VM_ADDRESS/24"]
[qemu]
qmp = "$LAB/src/qmp"
memory = "$LAB_MEMORY"
TOML
  if [ "${LAB_NETWORK:-route}" = tunnel ]; then
    cat >>"$file" <<TOML
[network]
mode = "tunnel"
TOML
    return
  fi
  cat >>"$file" <<TOML
[hooks]
post-switchover = ["$LAB_SOURCE/sites", "--dir", "$LAB/net", "route", "dst"]
failed = ["$LAB_SOURCE/sites", "--dir", "$LAB/net", "route", "src"]
TOML
}

# lab_start_qemu NAME SITE source|destination KERNEL-WORDS SOCKET...
lab_start_qemu() {
  local name=$1 site=$2 kind=$3 kernel_words=$4 index=0 socket word
  local words=() expanded=() groups=()
  mapfile -t words < <(lab_qemu_words "$site" "$kernel_words")
  for socket in "${@:5}"; do
    mapfile -t groups < <(lab_disk_words "$site" "$kind")
    groups=("${groups[@]//'{disk.index}'/$index}")
    words+=("${groups[@]//'{disk.socket}'/$socket}")
    index=$((index + 1))
  done
  mapfile -t groups < <(lab_nic_words)
  words+=("${groups[@]//'{nic.index}'/0}")
  for word in "${words[@]}"; do
    word=${word//'{vm}'/$name}
    word=${word//'{memory}'/$LAB_MEMORY}
    word=${word//'{qmp}'/$LAB/$site/qmp}
    expanded+=("${word//'{nic.mac}'/$LAB_VM_MAC}")
  done
  [ "$kind" = source ] || expanded+=(-S -incoming defer)
  # In a session of its own: Ctrl-C is for whoever called, who then calls lab_down.
  setsid "$LAB/at" "$site" "${expanded[@]}" >"$LAB/$site/qemu.log" 2>&1 </dev/null &
  echo $! >"$LAB/$site/qemu.pid"
  disown $! # else this shell tells when lab_down ends it
  lab_wait 10 test -S "$LAB/$site/qmp" && return 0
  cat "$LAB/$site/qemu.log" >&2
  lab_fail "QEMU does not start at $site"
}

lab_start_guest() {
  local sockets=() kernel_words="" name=$1 site=$2
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    sockets+=("$1")
    shift
  done
  [ $# = 0 ] || kernel_words="${*:2}"
  lab_start_qemu "$name" "$site" source "$kernel_words" "${sockets[@]}"
}

lab_monitor() { lab_client_program qmp "$LAB/$1/monitor" "${@:2}"; }

# Boots in 2 to 4 s; under a loaded TCG that can be ten times as long.
lab_start_client() {
  local name=${1:-client}
  rm -f "$LAB/$name.json"
  setsid "$LAB_SOURCE/sites" --dir "$LAB/net" in client "$LAB_BUILD/test/lab/lab-client" watch \
    "$LAB_VM_ADDRESS" "$LAB/$name.json" >"$LAB/$name.log" 2>&1 </dev/null &
  echo $! >"$LAB/$name.pid"
  lab_wait 60 test -s "$LAB/$name.json" && return 0
  cat "$LAB/$name.log" "$LAB"/*/console.log >&2
  lab_fail "the guest does not answer"
}

lab_acknowledged() { lab_json "$LAB/${1:-client}.json" .acknowledged; }

lab_has_acknowledged() { [ "$(lab_acknowledged "$2")" -ge "$1" ]; }

lab_wait_acknowledged() {
  local name=${2:-client}
  local goal=$(($(lab_acknowledged "$name") + $1))
  # After a link that was dead for long, TCP waits as long again before it tries.
  lab_wait 180 lab_has_acknowledged $goal "$name" ||
    lab_fail "the guest does not get to record $goal within 180 s: $(cat "$LAB/$name.json")"
}

lab_stop_client() {
  local name=${1:-client} pid
  pid=$(cat "$LAB/$name.pid")
  kill "$pid"
  wait "$pid" || lab_fail "the client's connections did not last: $(cat "$LAB/$name.json" "$LAB/$name.log")"
}

lab_fetch() {
  # shellcheck disable=SC2016 # $1 is the inner shell's
  lab_sites in client timeout 10 bash -c \
    'exec 3<>"/dev/tcp/$1/80" && printf "GET / HTTP/1.0\r\n\r\n" >&3 && cat <&3' bash "$LAB_VM_ADDRESS"
}

# The QEMU processes at a site, drover's as well.
lab_guest_pids() {
  local pid
  for pid in $(ip netns pids "$(lab_sites netns "$1")"); do
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != qemu-system-x86 ] || echo "$pid"
  done
}

lab_no_guest() { [ -z "$(lab_guest_pids "$1")" ]; }

lab_poweroff() {
  lab_sites in client "$LAB_BUILD/test/lab/lab-client" tell "$LAB_VM_ADDRESS" poweroff >/dev/null
  lab_wait 30 lab_no_guest "$1" || lab_fail "the guest at $1 does not power off: $(tail -3 "$LAB/$1/console.log")"
}

lab_check_records() {
  local image=$1 acknowledged=$2 work status=0
  work=$(mktemp -d "$LAB/check.XXXXXX")
  cp --sparse=always "$image" "$work/copy"
  # An image of a running guest: what the journal holds belongs to it.
  /sbin/e2fsck -y -E journal_only "$work/copy" >"$work/log" 2>&1 || true
  if /sbin/e2fsck -f -n "$work/copy" >"$work/log" 2>&1; then
    /sbin/debugfs -R "dump /records $work/records" "$work/copy" >"$work/log" 2>&1
    lab_client_program check "$work/records" "$acknowledged" || status=1
  else
    cat "$work/log" >&2
    status=1
  fi
  rm -rf "$work"
  [ $status = 0 ] || lab_fail "$image is not what the guest was told that it is"
}

lab_check_switchover() {
  local before=$1 log=$2 after=$3 copy status=0
  copy=$(mktemp "$LAB/check.XXXXXX")
  cp --sparse=always "$before" "$copy"
  lab_client_program replay "$log" "$copy" || status=1
  [ $status = 1 ] || cmp "$copy" "$after" >&2 || status=1
  rm -f "$copy"
  [ $status = 0 ] || lab_fail "$after is not $before with the writes of $log"
}
