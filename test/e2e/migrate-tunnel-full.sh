#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# migrate-tunnel.sh with each end of the tunnel, the coordinator and its agent killed at every step around the switchover.
# test: timeout=1500 release
# test: full
exec "$(dirname "$0")/migrate-tunnel.sh" --all
