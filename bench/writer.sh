# SPDX-License-Identifier: GPL-2.0-or-later
# fio in the guest's place, for the benchmarks; needs functions.sh.
# shellcheck shell=bash disable=SC2154

# start_writer URI SIZE FIO-OPTION...: pid_of[fio]; each operation's latency goes to a log.
start_writer() {
    rm -f "$work"/log_*
    start fio fio --name=job --ioengine=nbd --uri="$1" --size="$2" "${@:3}" \
        --time_based --runtime=600 --randrepeat=0 --norandommap \
        --write_lat_log="$work/log" --log_unix_epoch=1
}

stop_writer() {
    kill -INT "${pid_of[fio]}" 2>/dev/null || true
    wait "${pid_of[fio]}" 2>/dev/null || true
    stop fio
    compgen -G "$work/log_lat.*.log" >/dev/null || fail "fio: $(cat "$work/fio.log")"
}

# Of one part of the log: operations/s, 99th percentile and longest latency in us.
window() { # FROM_MS TO_MS
    awk -F', *' -v from="$1" -v to="$2" '$1 >= from && $1 < to { print $2 }' "$work"/log_lat.*.log |
        sort -n | awk -v ms="$(($2 - $1))" '{ v[NR] = $1 } END {
            if (NR == 0) { print 0, "inf", "inf" }
            else { i = int(NR * 0.99); print NR * 1000 / ms, v[i < 1 ? 1 : i] / 1000, v[NR] / 1000 } }'
}

column_median() { awk -v c="$2" '{ print $c }' "$1" | median; } # FILE COLUMN
