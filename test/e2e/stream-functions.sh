# SPDX-License-Identifier: GPL-2.0-or-later
# For tests of a stream between two nbdkits by themselves, `src` and `dst`; sourced after functions.sh.
# shellcheck shell=bash

ctl() { drover ctl "$@"; }
replication() { json ".replication.$1" ctl "$tmp/src.ctl" status; }
phase_is() { [[ $(replication phase) == "$1" ]]; }

# serve NAME ARGUMENT...: an nbdkit with the plugin; its pid in ${pid_of[NAME]}
declare -A pid_of
serve() {
    local name=$1
    shift
    rm -f "$name.sock"
    background nbdkit -f -t 32 -U "$tmp/$name.sock" "$DROVER_PLUGIN" "control=$tmp/$name.ctl" "$@"
    pid_of[$name]=$pid
    wait_for 20 test -S "$name.ctl"
}
killed() {
    kill -9 "${pid_of[$1]}"
    wait_for 20 eventually_gone "${pid_of[$1]}"
    wait "${pid_of[$1]}" 2>/dev/null || true # bash would tell of it
}
stop() {
    ctl "$tmp/$1.ctl" shutdown >/dev/null
    wait_for 20 eventually_gone "${pid_of[$1]}"
}
new_id() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
prepare() {
    ctl "$tmp/$1.ctl" prepare "{\"migration\":\"$2\",\"generation\":$3,\"uuid\":\"$(json .uuid ctl "$tmp/src.ctl" status)\"}" >/dev/null
}
# replicate MIGRATION GENERATION [MORE]
replicate() {
    ctl "$tmp/src.ctl" replicate "{\"migration\":\"$1\",\"generation\":$2,\"to\":{\"socket\":\"$tmp/dst.sock\"}${3-}}" >/dev/null
}
