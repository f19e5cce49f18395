# SPDX-License-Identifier: GPL-2.0-or-later
# For the tests with a real guest in the lab (test/lab/lab.sh), which is put away at their end; to be sourced after
# functions.sh.
#   at SITE COMMAND...
# shellcheck shell=bash
requires drover nbdkit qemu-system-x86_64 jq ip nft busybox
[[ $(id -u) == 0 ]] || skip "network namespaces need root"

# shellcheck disable=SC2034 # both are lab.sh's
LAB_BUILD=$DROVER_BUILD LAB=$tmp/lab
mkdir lab
# shellcheck source=test/lab/lab.sh
source "$e2e_top/test/lab/lab.sh"
on_exit lab_down

at() { "$LAB/at" "$@"; }
