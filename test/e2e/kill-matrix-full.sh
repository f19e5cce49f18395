#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# kill-matrix.sh with every step there is.
# test: timeout=3000 release
# test: full
exec "$(dirname "$0")/kill-matrix.sh" --all
