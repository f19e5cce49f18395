#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Two real nbdkits and clients that write, zero, trim and flush at random through whole moves, the
# destination stopped and killed at random moments: in sync it is a prefix of the acknowledged order,
# at the handover it is equal.
# test: timeout=600 tsan
# shellcheck source=test/e2e/functions.sh
source "$(dirname "$0")/functions.sh"
requires nbdkit
[[ -x $DROVER_BUILD/test/model/stream-model ]] || fail "stream-model is not built"

# Another seed each day: the same one all day, so that a failure can be seen again.
seed=${DROVER_SEED:-$(date +%Y%m%d)}
echo "seed $seed (DROVER_SEED)"
"$DROVER_BUILD/test/model/stream-model" --seed "$seed" --rounds 4 --cuts 20
