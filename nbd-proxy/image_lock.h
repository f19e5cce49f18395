// SPDX-License-Identifier: GPL-2.0-or-later
// The locks on an image that QEMU's tools respect, so that two programs never write it at once.
#pragma once

#include <string>

namespace drover {

enum class ImageUse {
    read,  // shared with readers; keeps writers away, and is refused where there is one
    write, // as QEMU opens a guest's disk: one writer, and nobody who needs it to stay as it is
};

// Takes the locks on fd's open file description, which keeps them until its last descriptor
// is closed (a fork shares them). fd must be readable; on failure the caller closes it. name is
// for messages. Throws Error(refused) when another program's use excludes this one, Error(io)
// when the file system cannot lock.
void lock_image(int fd, ImageUse use, const std::string& name);

} // namespace drover
