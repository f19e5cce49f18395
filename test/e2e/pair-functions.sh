# SPDX-License-Identifier: GPL-2.0-or-later
# Two plugins by themselves, src and dst in $tmp, for the e2e tests that need no coordinator; sourced after functions.sh.
#
#   serve NAME ARGUMENT...   an nbdkit with the plugin, its sockets NAME.sock and NAME.ctl; its pid in ${pid_of[NAME]}
#   killed NAME, stop NAME   it ends, by SIGKILL or in order
#   prepare NAME MIGRATION GENERATION    it takes the disk of src
#   replicate MIGRATION GENERATION [MORE]   src to dst; MORE: further parameters, ',"name":value'
#   replication KEY, phase_is PHASE      what src says of it
# shellcheck shell=bash disable=SC2154

ctl() { drover ctl "$@"; }
replication() { json ".replication.$1" ctl "$tmp/src.ctl" status; }
phase_is() { [[ $(replication phase) == "$1" ]]; }

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
}
stop() {
    ctl "$tmp/$1.ctl" shutdown >/dev/null
    wait_for 20 eventually_gone "${pid_of[$1]}"
}
new_id() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
prepare() {
    ctl "$tmp/$1.ctl" prepare "{\"migration\":\"$2\",\"generation\":$3,\"uuid\":\"$(json .uuid ctl "$tmp/src.ctl" status)\"}" >/dev/null
}
replicate() {
    ctl "$tmp/src.ctl" replicate "{\"migration\":\"$1\",\"generation\":$2,\"to\":{\"socket\":\"$tmp/dst.sock\"}${3-}}" >/dev/null
}
# shellcheck disable=SC2034 # for the test
src="nbd+unix:///?socket=$tmp/src.sock"
