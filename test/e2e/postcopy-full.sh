#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# postcopy.sh with every way of the memory.
# test: timeout=1200 release
# test: full
exec "$(dirname "$0")/postcopy.sh" --all
