# SPDX-License-Identifier: GPL-2.0-or-later
# The lab's WAN link (test/lab/sites), for the benchmarks; needs functions.sh, and $drover: the plugin.
# shellcheck shell=bash disable=SC2034,SC2154

sites() { "$(dirname "${BASH_SOURCE[0]}")/../test/lab/sites" --dir "$work/net" "$@"; }

# Both ends are at its sites from then on.
link() { # KEY=VALUE...
    if [[ -z $in_lab ]]; then
        mkdir -p "$work/net"
        in_lab=yes
        DROVER_LAB_BIN=${drover%/nbd-proxy/*}/test/lab sites up "$@"
        from_in=(ip netns exec "$(sites netns src)")
        to_in=(ip netns exec "$(sites netns dst)")
        to_address=10.8.0.2
    else
        sites link "$@" >/dev/null
    fi
}
