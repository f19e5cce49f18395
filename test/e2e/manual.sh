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

drover --help | sed -n '/^Subcommands:/,$ s/^  \([a-z]\+\) .*/\1/p' >commands
[[ $(wc -l <commands) -ge 8 ]] || fail "drover --help lists no commands"
while read -r command; do
    grep -q "^=head2 $command\$" "$docs/drover.1.pod" || fail "drover.1 has no section '$command'"
    sed -n "/^=head2 $command\$/,/^=head2/p" "$docs/drover.1.pod" >section
    drover "$command" --help | grep -oE '^  (-[a-z],)?--[a-z-]+' | grep -oE -- '--[a-z-]+' | grep -vx -- --help >options || true
    # shellcheck disable=SC2046 # a word each
    lacks=$(missing section $(cat options))
    [[ -z $lacks ]] || fail "drover.1, section $command, lacks: $lacks"
    # And the other way round.
    for option in $(grep -oE '^=item B<--[a-z-]+' section | grep -oE -- '--[a-z-]+' || true); do
        grep -qx -- "$option" options || fail "drover.1 tells of $command $option, which is not there"
    done
done <commands

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
