// SPDX-License-Identifier: GPL-2.0-or-later
// Stops for tests (docs/control.md): $DROVER_TEST_STEPS is a folder with a FIFO for each step at
// which to stop.
#pragma once

#include <string>

namespace drover {

// $DROVER_TEST_STEPS is set.
bool has_test_steps();

// Where there is a FIFO of that name, writes the name into it, which says that the step is next,
// and returns when NAME.go could be opened. Of a process only the first to come there stops, once.
// Any thread.
void stop_for_test(const std::string& name);

} // namespace drover
