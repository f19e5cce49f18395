# SPDX-License-Identifier: GPL-2.0-or-later
# QEMU's blockdev-mirror, for the benchmarks; needs functions.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# The far side of every peer: nbdkit file on an empty image. Sets uri, and port for the case tls.
start_target() { # IMAGE SIZE CASE
    rm -f "$work/target.sock"
    empty_image "$1" "$2"
    if [[ $3 == tls ]]; then
        port=$(free_port)
        start target "${to_in[@]}" nbdkit -f -i "$to_address" -p "$port" --tls=require \
            --tls-psk="$work/tls/keys.psk" file "$1"
        wait_for listens target "$port"
        uri="nbds://bench@$to_address:$port/?tls-psk-file=$work/tls/keys.psk"
    else
        start target nbdkit -f -U "$work/target.sock" file "$1"
        wait_for answers target "$work/target.sock"
        uri="nbd+unix:///?socket=$work/target.sock"
    fi
}

# start_qemu_pair SOURCE TARGET CASE: pid_of[qemu] has the source open and serves it on
# $work/qemu.sock, export "disk"; the open channel is its QMP, and the target is attached as "to".
start_qemu_pair() {
    local creds=() tls='' address
    start_target "$2" "$(stat -c %s "$1")" "$3"
    rm -f "$work"/qemu.{sock,qmp}
    if [[ $3 == tls ]]; then
        address="\"type\": \"inet\", \"host\": \"$to_address\", \"port\": \"$port\""
        tls='"tls-creds": "tls", '
        creds=(--object "tls-creds-psk,id=tls,endpoint=client,username=bench,dir=$work/tls")
    else
        address="\"type\": \"unix\", \"path\": \"$work/target.sock\""
    fi
    start qemu "${from_in[@]}" qemu-storage-daemon "${creds[@]}" \
        --blockdev "driver=file,node-name=from,filename=$1" \
        --nbd-server "addr.type=unix,addr.path=$work/qemu.sock" \
        --export nbd,id=disk,node-name=from,name=disk,writable=on \
        --chardev "socket,id=qmp,path=$work/qemu.qmp,server=on,wait=off" --monitor chardev=qmp
    wait_for answers qemu "$work/qemu.qmp"
    channel_open "$work/qemu.qmp"
    qmp qmp_capabilities
    qmp blockdev-add "{\"driver\": \"nbd\", \"node-name\": \"to\", $tls\"server\": {$address}}"
}

start_mirror() { # COPY-MODE: background or write-blocking
    qmp blockdev-mirror "{\"job-id\": \"m\", \"device\": \"from\", \"target\": \"to\",
        \"sync\": \"full\", \"copy-mode\": \"$1\"}"
}

stop_qemu_pair() {
    channel_close
    stop qemu
    stop target
}
