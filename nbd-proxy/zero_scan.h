// SPDX-License-Identifier: GPL-2.0-or-later
// Finds the zeroes in what was read, so that they are not sent as data.
#pragma once

#include "nbd-proxy/core/frame.h"

#include <cstddef>
#include <vector>

namespace drover {

bool is_zero(const std::byte* data, size_t length) noexcept;

// data: what was read of the disk from parts.front().offset on, in one piece. Answers with writes
// and trims that cover the parts, and moves the writes' data together at the start of `data`, in
// order. At most as many operations as a table of table_bytes can hold: rather than more, zeroes
// are sent as data.
std::vector<Op> pack_ops(std::byte* data, const std::vector<Extent>& parts, size_t table_bytes);

} // namespace drover
