# SPDX-License-Identifier: GPL-2.0-or-later
# What the e2e tests share; sourced as their first command:
#   # shellcheck source=test/e2e/functions.sh
#   source "$(dirname "$0")/functions.sh"
# test/run tells where drover, DROVER_PLUGIN and DROVER_BUILD are; by hand they are those of build/.
# Afterwards the test is in a directory of its own, $tmp, which goes away with everything that was
# started, whichever way the test ends.
#
#   requires PROGRAM...       skips the test (exit status 77) if one is missing
#   skip WHY
#   fail WHY
#   on_exit COMMAND...        run at the end, the last one first
#   background COMMAND...     started in the background, its pid in $pid, ended at the end
#   wait_for SECONDS COMMAND...   until the command succeeds, or the test fails
#   eventually_gone PID       for wait_for: the process has ended
#   expect STATUS COMMAND...  the command must end with this exit status; its stdout and stderr
#                             are in $tmp/out and $tmp/err afterwards
#   expect_text FILE TEXT     FILE has the TEXT somewhere
#   site NAME [LINE...]       from now on drover is that of the site $tmp/NAME (run/, state/, images/,
#                             drover.toml of the LINEs, vm.d/); its disks are stopped at the end
#   ways_to_sites FILE        makes FILE SITE COMMAND..., which runs the command at that site: the --rsh of a
#                             migration; sets DROVER_REMOTE
#   json FILTER COMMAND...    what jq -r FILTER finds in the command's output
#   requires_fuse             skips the test where nbdfuse can't mount anything
#   fuse_disk FILE URI        the NBD server's disk as that file, until the end or unfuse_disk FILE
# shellcheck shell=bash

set -Eeuo pipefail
export LC_ALL=C

e2e_top=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
export DROVER_BUILD=${DROVER_BUILD:-$e2e_top/build}
export DROVER_PLUGIN=${DROVER_PLUGIN:-$DROVER_BUILD/nbd-proxy/nbdkit-drover-plugin.so}
command -v drover >/dev/null || PATH=$DROVER_BUILD/migrator:$PATH

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

skip() {
    echo "skipped: $*"
    exit 77
}

requires() {
    local program
    for program; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

e2e_at_exit=()
on_exit() { e2e_at_exit+=("$(printf '%q ' "$@")"); }

e2e_end() {
    local status=$? i
    trap '' INT TERM
    trap - ERR
    set +e
    for ((i = ${#e2e_at_exit[@]} - 1; i >= 0; i--)); do
        eval "${e2e_at_exit[i]}"
    done
    if ((status != 0 && status != 77)); then
        # What the programs said last, since it goes away with the rest.
        for i in "$tmp"/*/state/*/*/log "$tmp"/*/state/*/*.log; do
            [[ ! -s $i ]] || printf -- '--- %s\n%s\n' "${i#"$tmp"/}" "$(tail -n 40 "$i")" >&2
        done
    fi
    cd /
    rm -rf "$tmp"
    exit $status
}

# Sockets are below it: the path must be short.
tmp=$(mktemp -d /tmp/drover-e2e.XXXXXX)
trap e2e_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'echo "FAILED: $(basename "$0"), line $LINENO: $BASH_COMMAND" >&2' ERR
cd "$tmp"

# A zombie may have threads that have not ended, and with them its files and locks.
eventually_gone() {
    [[ ! -e /proc/$1 ]] ||
        [[ $(cut -d ' ' -f 3 "/proc/$1/stat" 2>/dev/null) == Z && $(find "/proc/$1/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l) -le 1 ]]
}

# nbdkit waits for its clients, and they may be ended after it.
e2e_kill() {
    local i
    kill "$1" 2>/dev/null || return
    for ((i = 0; i < 100; i++)); do
        ! eventually_gone "$1" || break
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null
    wait "$1" 2>/dev/null
}

background() {
    "$@" &
    # shellcheck disable=SC2034 # for the test
    pid=$!
    on_exit e2e_kill "$pid"
}

wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "waited in vain for: $*"
        sleep 0.02
    done
}

expect() {
    local wanted=$1 status=0
    shift
    "$@" >"$tmp/out" 2>"$tmp/err" || status=$?
    if ((status != wanted)); then
        cat "$tmp/out" "$tmp/err" >&2
        fail "exit status $status, not $wanted: $*"
    fi
}

expect_text() {
    grep -qF -- "$2" "$1" || {
        cat "$1" >&2
        fail "this is missing in $1: $2"
    }
}

json() {
    local filter=$1
    shift
    "$@" | jq -r "$filter"
}

# The processes of a site that would not stop: by the pids that drover noted.
e2e_stop_site() {
    local vm record
    export DROVER_RUN=$1/run DROVER_STATE=$1/state DROVER_CONF=$1/drover.toml
    for record in "$1"/run/*/*.json; do
        [[ -e $record ]] || continue
        vm=$(basename "$(dirname "$record")")
        timeout 20 drover serve --stop "$vm" >/dev/null 2>&1 || kill -9 "$(jq .pid "$record")" 2>/dev/null
    done
}

site() {
    local dir=$tmp/$1
    shift
    export DROVER_RUN=$dir/run DROVER_STATE=$dir/state DROVER_CONF=$dir/drover.toml
    [[ ! -e $dir/drover.toml ]] || return 0
    mkdir -p "$dir"/{run,state,images,vm.d}
    printf '%s\n' "images = \"$dir/images\"" "$@" >"$dir/drover.toml"
    on_exit e2e_stop_site "$dir"
}

ways_to_sites() {
    cat >"$1" <<SH
#!/bin/bash
export DROVER_CONF=$tmp/\$1/drover.toml DROVER_RUN=$tmp/\$1/run DROVER_STATE=$tmp/\$1/state
shift
exec "\$@"
SH
    chmod +x "$1"
    DROVER_REMOTE=$(command -v drover)
    export DROVER_REMOTE
}

# nbdfuse ends when its file is unmounted; one that was killed leaves it mounted.
# Tried whatever `mountpoint` says: it finds none where a file system's disk has gone first.
e2e_unmount() { umount -l "$1" 2>/dev/null || true; }

declare -A e2e_fuse_pid
fuse_disk() {
    : >"$1"
    rm -f "$1.pid"
    on_exit e2e_unmount "$tmp/$1"
    background nbdfuse -P "$tmp/$1.pid" "$tmp/$1" "$2"
    e2e_fuse_pid[$1]=$pid
    e2e_fuse_answers() { [[ -s $1 ]] || eventually_gone "$2"; }
    wait_for 20 e2e_fuse_answers "$1.pid" "$pid"
    mountpoint -q "$1"
}
unfuse_disk() {
    umount "$1"
    wait_for 20 eventually_gone "${e2e_fuse_pid[$1]}"
}

requires_fuse() {
    local server
    requires nbdfuse mountpoint
    [[ -w /dev/fuse ]] || skip "there is no /dev/fuse here"
    background nbdkit -f -U "$tmp/trial.sock" null 1M
    server=$pid
    wait_for 10 test -S trial.sock
    fuse_disk trial "nbd+unix:///?socket=$tmp/trial.sock" 2>trial.err || skip "nbdfuse can't mount here: $(cat trial.err)"
    unfuse_disk trial
    kill "$server"
    wait_for 10 eventually_gone "$server"
}
