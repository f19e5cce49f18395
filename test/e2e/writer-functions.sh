# SPDX-License-Identifier: GPL-2.0-or-later
# A client that writes a block of a disk after the other, over and over, and adds a line to `acknowledged` when it was
# answered; where its server is gone it connects again. To be sourced after functions.sh; needs qemu-io.
#   start_writer SOCKET       the disk has $blocks blocks of $block bytes at least; $pause: seconds after each write
#   acknowledged              how many were answered
#   has_acknowledged N        for wait_for
#   stop_writer
#   check_writes IMAGE        every write that was answered, or, of its block, the one that was not answered any more
# shellcheck shell=bash
block=4096
blocks=2000
pause=0

e2e_writer() {
    local n line never
    exec {never}<> <(:)
    coproc QEMU_IO { exec stdbuf -oL qemu-io --image-opts "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$1,file.reconnect-delay=60" 2>&1; }
    for ((n = 0; ; n++)); do
        printf 'write -f -P %d %d %d\n' $((n % 251 + 1)) $((n % blocks * block)) $block >&"${QEMU_IO[1]}" || return 0
        until [[ ${line:-} == *"wrote $block/$block"* ]]; do
            read -r line <&"${QEMU_IO[0]}" || return 0
        done
        line=
        echo >>"$tmp/acknowledged"
        [[ $pause == 0 ]] || read -rt "$pause" <&"$never" || true
    done
}
acknowledged() { wc -l <acknowledged; }
has_acknowledged() { [[ $(acknowledged) -ge $1 ]]; }
writer_pid=
on_exit stop_writer
start_writer() {
    : >acknowledged
    e2e_writer "$1" 2>/dev/null &
    writer_pid=$!
    wait_for 10 has_acknowledged 3
}
# With its qemu-io, which may wait for a disk for ever.
stop_writer() {
    local pids
    [[ -n $writer_pid ]] || return 0
    pids=$(pgrep -P "$writer_pid" || true)
    # shellcheck disable=SC2086
    kill -9 "$writer_pid" $pids 2>/dev/null || true
    wait "$writer_pid" 2>/dev/null || true
    writer_pid=
}

check_writes() {
    local count
    count=$(acknowledged)
    od -An -v -tu1 -w$block -N $((blocks * block)) "$1" |
        awk -v count="$count" -v blocks=$blocks '
            function pattern(n) { return n % 251 + 1 }
            function is_written(n) { return $1 == pattern(n) && $4096 == $1 }
            {
                at = NR - 1
                if (at < count && !is_written(count - 1 - (count - 1 - at) % blocks) && !(at == count % blocks && is_written(count))) bad = NR
            }
            END { exit NR != blocks || bad }' ||
        fail "$1 lacks writes that were answered, of $count"
}

