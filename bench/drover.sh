# SPDX-License-Identifier: GPL-2.0-or-later
# The two plugins of a move, for the benchmarks; needs functions.sh, and $drover: the plugin.
# shellcheck shell=bash disable=SC2034,SC2154

# start_drover_pair SOURCE TARGET CASE: pid_of[from], pid_of[to]; clients use $work/from.sock.
# replicate_extra: more parameters of `replicate`, as JSON. The target is made anew; the record beside the source is kept from one pair to the next.
start_drover_pair() {
    local size listen=(-U "$work/to.sock") status
    size=$(stat -c %s "$1")
    rm -rf "$2" "$2.drover" "$work"/{from,to}.{sock,ctl}
    if [[ $3 == tls ]]; then
        drover_port=$(free_port)
        listen=(-i "$to_address" -p "$drover_port" --tls=on --tls-psk="$work/tls/keys.psk")
    fi
    start to "${to_in[@]}" nbdkit -f "${listen[@]}" -t 32 "$drover" "file=$2" role=destination \
        "size=$size" "control=$work/to.ctl"
    start from "${from_in[@]}" nbdkit -f -U "$work/from.sock" -t 32 "$drover" "file=$1" "control=$work/from.ctl"
    wait_for answers to "$work/to.ctl"
    wait_for answers from "$work/from.ctl"
    wait_for answers from "$work/from.sock"
    if [[ $3 == tls ]]; then
        wait_for listens to "$drover_port"
    else
        wait_for answers to "$work/to.sock"
    fi

    status=$(call "$work/from.ctl" status '{}')
    local generation
    generation=$(($(jq .generation <<<"$status") + 1))
    migration=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    prepared=$(call "$work/to.ctl" prepare "$(jq -c --arg m "$migration" --argjson g "$generation" \
        '{migration: $m, generation: $g, uuid, block_size}' <<<"$status")")
    replicate_params=$(jq -cn --arg m "$migration" --argjson g "$generation" \
        --arg key "$(psk_key)" --arg socket "$work/to.sock" --arg port "${drover_port:-0}" \
        --arg case "$3" --arg host "$to_address" --argjson extra "${replicate_extra:-{\}}" \
        '{migration: $m, generation: $g, to: (if $case == "tls" then
            {host: $host, port: ($port | tonumber), psk_user: "bench", psk_key: $key}
            else {socket: $socket} end)} + $extra')
    channel_open "$work/from.ctl"
    channel_send '{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"interval_ms":100}}'
    channel_wait '*"id":1*' 10
}

# Starts the move; what becomes of it comes over the open channel.
replicate() {
    channel_send "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"replicate\",\"params\":$replicate_params}"
}

# The disk becomes the destination's, with its client here still, which is then forwarded.
hand_over() {
    local forward refusal
    forward=$(jq -c .to <<<"$replicate_params") refusal=$(jq -r .refusal_hash <<<"$prepared")
    ask 3 quiesce "{\"hold\":true,\"forward\":$forward}"
    ask 4 fence "{\"quiesce\":\"$(field quiesce)\",\"refusal_hash\":\"$refusal\",\"forward\":$forward}"
    call "$work/to.ctl" promote "{\"migration\":\"$migration\",\"token\":\"$(field token)\"}" >/dev/null
    ask 5 forward '{}'
}

# Over the open channel, which costs no process; the answer is in $line.
ask() { # ID METHOD PARAMETERS
    channel_send "{\"jsonrpc\":\"2.0\",\"id\":$1,\"method\":\"$2\",\"params\":$3}"
    channel_wait "*\"id\":$1*" 60
}
field() { # NAME: a text in $line
    [[ $line =~ \"$1\":\"([^\"]*)\" ]] && echo "${BASH_REMATCH[1]}"
}

# Ends the move without a handover; the channel must be closed already.
stop_drover_pair() {
    call "$work/from.ctl" cancel '{}' >/dev/null
    stop from
    stop to
}
