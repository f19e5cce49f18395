#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kill-guest.sh with everybody, at every step around the switchover.
# test: timeout=4200 release
# test: full
exec "$(dirname "$0")/kill-guest.sh" --all
