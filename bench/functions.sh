# SPDX-License-Identifier: GPL-2.0-or-later
# What the benchmarks share; sourced by them. Everything they make is in $work, and everything they
# start is in $servers: both are gone at the end, whichever way it comes.
# shellcheck shell=bash disable=SC2034,SC2153,SC2154

set -euo pipefail
shopt -s extglob
export LC_ALL=C

declare -A pid_of socket_of
servers=()
work=
# Where the two ends are: words before a command, and the address that TLS listens on. See lab.sh.
from_in=() to_in=() to_address=127.0.0.1 in_lab=

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

requires() {
    local program
    for program; do
        command -v "$program" >/dev/null || fail "$program is missing: install it first"
    done
}

stop_all() {
    local pid i
    kill "${servers[@]}" 2>/dev/null || true
    for ((i = 0; i < 1000; i++)); do
        kill -0 "${servers[@]}" 2>/dev/null || break
        sleep 0.01
    done
    kill -KILL "${servers[@]}" 2>/dev/null || true
    for pid in "${servers[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    servers=()
    pid_of=()
    socket_of=()
}

clean_up() {
    local status=$?
    trap '' INT TERM
    stop_all
    [[ -z $in_lab ]] || sites down
    [[ -z $work ]] || rm -rf "$work"
    exit "$status"
}

# begin DIRECTORY MIB: the images are made below it, and take so much at a time.
begin() {
    local room_mib memory_mib
    room_mib=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
    memory_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    if [[ $(stat -f -c %T "$1") == tmpfs ]] && ((memory_mib < room_mib)); then
        room_mib=$memory_mib
    fi
    (($2 + 1024 < room_mib)) || fail "$1 has room for $room_mib MiB, $(($2 + 1024)) are" \
        "needed: give a smaller --size or another --dir"
    work=$(mktemp -d "$1/drover-bench.XXXXXX")
    trap clean_up EXIT
    trap 'exit 1' INT TERM
}

plugin() {
    local here found
    if [[ -n ${DROVER_PLUGIN:-} ]]; then
        echo "$DROVER_PLUGIN"
        return
    fi
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    found=$here/build/nbd-proxy/nbdkit-drover-plugin.so
    [[ -e $found ]] || fail "no $found: build it, or name the plugin in DROVER_PLUGIN"
    echo "$found"
}

# wait_for CONDITION...: up to 10 seconds.
wait_for() {
    local i
    for ((i = 0; i < 1000; i++)); do
        if "$@"; then
            return
        fi
        sleep 0.01
    done
    fail "waited in vain for: $*; see the server's message above"
}

# start NAME COMMAND...: in the background; its pid is pid_of[NAME].
start() {
    local name=$1
    shift
    "$@" </dev/null >"$work/$name.log" 2>&1 &
    servers+=($!)
    pid_of[$name]=$!
}

# stop NAME
stop() {
    local pid=${pid_of[$1]} other left=()
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    for other in "${servers[@]}"; do
        [[ $other == "$pid" ]] || left+=("$other")
    done
    servers=("${left[@]}")
    unset "pid_of[$1]"
}

answers() { # NAME SOCKET
    if ! kill -0 "${pid_of[$1]}" 2>/dev/null; then
        cat "$work/$1.log" >&2
        fail "$1 ended before it served anything"
    fi
    [[ -S $2 ]]
}

# A TCP port that nothing listens on now.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 20000))
        if [[ -z $(ss -Htln "sport = :$port") ]]; then
            echo "$port"
            return
        fi
    done
}

listens() { # NAME PORT
    if ! kill -0 "${pid_of[$1]}" 2>/dev/null; then
        cat "$work/$1.log" >&2
        fail "$1 ended before it served anything"
    fi
    [[ -n $("${to_in[@]}" ss -Htln "sport = :$2") ]]
}

# One key for all, and AES unless a case says otherwise: GnuTLS prefers ChaCha20 on Debian, which is
# many times slower where the processor has AES instructions.
make_tls() {
    mkdir -p "$work/tls"
    psktool -u bench -p "$work/tls/keys.psk" >/dev/null 2>&1
    printf '[overrides]\ntls-disabled-cipher = CHACHA20-POLY1305\n' >"$work/tls/priority"
    export GNUTLS_SYSTEM_PRIORITY_FILE=$work/tls/priority
}
psk_key() { cut -d: -f2 "$work/tls/keys.psk"; }

# A new, empty image of the given size.
empty_image() { # FILE SIZE
    rm -f "$1"
    truncate -s "$2" "$1"
}

# Random bytes, quicker than /dev/urandom.
random_bytes() { # BYTES
    openssl enc -aes-128-ctr -nosalt -pass pass:"$RANDOM$RANDOM$RANDOM" -md sha256 \
        -in /dev/zero 2>/dev/null | head -c "$1" || true
}

now_ms() {
    local us=${EPOCHREALTIME/./}
    echo $((us / 1000))
}

# Processor time of a process so far, in ms.
cpu_ms() { # PID
    local stat fields
    stat=$(<"/proc/$1/stat")
    read -ra fields <<<"${stat##*) }"
    echo $(((fields[11] + fields[12]) * 1000 / $(getconf CLK_TCK)))
}

# Memory that a virtual machine has never used is slow the first time; that must hit nobody.
use_memory() { # MIB
    random_bytes "$1M" >"$work/warm-up"
    rm "$work/warm-up"
}

# The order of a round, in turn[]: everybody is first now and then.
in_turn() { # ROUND
    local first=$(($1 % ${#tools[@]}))
    turn=("${tools[@]:first}" "${tools[@]:0:first}")
}

# Numbers on standard input, one a line.
median() {
    sort -g | awk '{ v[NR] = $1 } END {
        if (NR == 0) { print "nan" } else if (NR % 2) { print v[(NR + 1) / 2] }
        else { print (v[NR / 2] + v[NR / 2 + 1]) / 2 } }'
}

# One conversation in lines of JSON at a time: QMP, or the plugin's control socket.
channel_open() { # SOCKET
    coproc CHANNEL { exec socat -t 3600 - "UNIX-CONNECT:$1"; }
    channel_pid=$CHANNEL_PID
    exec {channel_in}<&"${CHANNEL[0]}" {channel_out}>&"${CHANNEL[1]}"
}

channel_send() { printf '%s\n' "$1" >&"$channel_out"; }

# Reads until a line matches the pattern (a glob); that line is in $line. 1: none did in time.
channel_try() { # PATTERN SECONDS
    local deadline=$((SECONDS + $2)) part name
    line=
    while ((SECONDS < deadline)); do
        if ! read -r -t 1 -u "$channel_in" part; then
            line+=$part # what came of a line before the second was over
            for name in "${!pid_of[@]}"; do
                kill -0 "${pid_of[$name]}" 2>/dev/null || fail "$name has ended: $(tail -n 3 "$work/$name.log")"
            done
            continue
        fi
        line+=$part
        # shellcheck disable=SC2053
        if [[ $line == $1 ]]; then
            return
        fi
        if [[ $line == *'"error":'* && $line != *'"error":null'* ]]; then
            fail "the other side said: $line"
        fi
        line=
    done
    return 1
}

channel_wait() { # PATTERN SECONDS
    channel_try "$@" || fail "no line like '$1' within $2 s"
}

channel_close() {
    exec {channel_in}<&- {channel_out}>&-
    kill "$channel_pid" 2>/dev/null || true
    wait "$channel_pid" 2>/dev/null || true
}

# call SOCKET METHOD PARAMETERS: one request to a control socket; prints its result.
call() {
    local answer
    answer=$(printf '{"jsonrpc":"2.0","id":1,"method":"%s","params":%s}\n' "$2" "$3" |
        socat -t 60 - "UNIX-CONNECT:$1" | head -n 1)
    jq -ce .result <<<"$answer" || fail "$2: $answer"
}

qmp() { # COMMAND ARGUMENTS: over the open channel
    channel_send "{\"execute\": \"$1\", \"arguments\": ${2:-{\}}}"
    channel_wait '*"return":*' 60
}

# How the machine looks, for the head of a report.
machine() {
    echo "$(nproc) x $(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)," \
        "Linux $(uname -r), $(nbdkit --version)," \
        "libnbd $(nbdcopy --version | awk '{ print $NF; exit }')," \
        "$(qemu-img --version | awk '{ print "QEMU " $3; exit }'), $(fio --version)"
}
