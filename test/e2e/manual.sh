#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# The man pages are sound, and tell of everything that --help and the examples of the configuration tell of.
# test: timeout=60
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires podchecker nbdkit
docs=$e2e_top/docs conf=$e2e_top/conf

for page in "$docs"/*.pod; do
    podchecker -warnings "$page" 2>pod || { cat pod >&2; fail "$page"; }
done

# missing PAGE WORD...: those that the page does not have as a word
missing() {
    local page=$1 word
    shift
    for word; do
        grep -qE -- "(^|[^a-z-])$word([^a-z-]|\$)" "$page" || echo "$word"
    done
}

# check_commands PROGRAM PAGE LEAST: the page has a section for each command (LEAST or more), which tells of each of
# its options, and of no other.
check_commands() {
    local program=$1 page=$2 name command lacks option
    name=$(basename "$page" .pod)
    "$program" --help | sed -n '/^Subcommands:/,$ s/^  \([a-z]\+\) .*/\1/p' >commands
    [[ $(wc -l <commands) -ge $3 ]] || fail "$program --help lists no commands"
    while read -r command; do
        grep -q "^=head2 $command\$" "$page" || fail "$name has no section '$command'"
        sed -n "/^=head2 $command\$/,/^=head2/p" "$page" >section
        "$program" "$command" --help | grep -oE '^  (-[a-z],)?--[a-z-]+' | grep -oE -- '--[a-z-]+' | grep -vx -- --help >options || true
        # shellcheck disable=SC2046 # a word each
        lacks=$(missing section $(cat options))
        [[ -z $lacks ]] || fail "$name, section $command, lacks: $lacks"
        for option in $(grep -oE '^=item B<--[a-z-]+' section | grep -oE -- '--[a-z-]+' || true); do
            grep -qx -- "$option" options || fail "$name tells of $command $option, which is not there"
        done
    done <commands
}
check_commands drover "$docs/drover.1.pod" 8
check_commands "$DROVER_BUILD/tunnel/drover-tunnel" "$docs/drover-tunnel.1.pod" 8

nbdkit "$DROVER_PLUGIN" --help >plugin-help
sed -n 's/^\([a-z-]\+\)=.*/\1/p; s/^\[file=\].*/file/p' plugin-help | grep -vx debug >parameters
[[ $(wc -l <parameters) -ge 8 ]] || { cat plugin-help >&2; fail "nbdkit drover --help lists no parameters"; }
# shellcheck disable=SC2046
lacks=$(missing "$docs/nbdkit-drover-plugin.1.pod" $(cat parameters))
[[ -z $lacks ]] || fail "nbdkit-drover-plugin.1 lacks: $lacks"

keys() { sed -n 's/^#\?\([a-z-]\+\) = .*/\1/p' "$1"; }
# shellcheck disable=SC2046
lacks=$(missing "$docs/drover.toml.5.pod" $(keys "$conf/drover.toml"))
[[ -z $lacks ]] || fail "drover.toml.5 lacks: $lacks"
# shellcheck disable=SC2046
lacks=$(missing "$docs/drover-vm.5.pod" $(keys "$conf/vm1.toml"))
[[ -z $lacks ]] || fail "drover-vm.5 lacks: $lacks"
echo "all well"
