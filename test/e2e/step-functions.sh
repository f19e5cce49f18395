# SPDX-License-Identifier: GPL-2.0-or-later
# For the tests that kill a process when a migration has come to a step, SIDE.STEP of a journal; to be sourced
# after functions.sh.
#   stop_at STEP       from now on, whoever comes to that step waits there
#   reached STEP [S]   waits (20 s) until somebody has; what comes to it later goes by
#   go_on STEP
#   kill_victim NAME   the process that the test's victim_pid NAME tells
# shellcheck shell=bash
export DROVER_TEST_STEPS=$tmp/steps # docs/control.md
mkdir steps

stop_at() { mkfifo "steps/$1" "steps/$1.go"; }
reached() {
    timeout "${2:-20}" cat "steps/$1" >/dev/null || fail "it did not come to $1: $(cat out err)"
    rm "steps/$1"
    mv "steps/$1.go" "stopped-$1"
}
# Of a process that was killed nobody waits.
go_on() {
    timeout 1 bash -c ": >stopped-$1" || true
    rm "stopped-$1"
}
kill_victim() {
    local pid
    pid=$(victim_pid "$1")
    [[ -n $pid ]] || fail "there is no $1"
    kill -9 "$pid"
    wait_for 10 eventually_gone "$pid"
}
