// SPDX-License-Identifier: GPL-2.0-or-later
// Whole reads and writes on a file descriptor. Thread-safe; the file position is not used.
#pragma once

#include "common/units.h"

#include <string>

namespace drover {

// All of it, over interruptions and short transfers. name is for messages.
// Throw Error(io); the file ending before where.end() is EIO.
void read_fully(int fd, void* data, Extent where, const std::string& name);
// durable: with O_DSYNC semantics.
void write_fully(int fd, const void* data, Extent where, bool durable, const std::string& name);
void write_zeroes(int fd, Extent where, const std::string& name);

// False where the file system or device cannot do it and nothing was changed; throws
// Error(io) for every other failure.
bool try_fallocate(int fd, int mode, Extent where, const std::string& name);

} // namespace drover
