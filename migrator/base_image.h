// SPDX-License-Identifier: GPL-2.0-or-later
// An image at the destination that a disk which comes in starts from (`drover migrate --base`).
// Its path is the peer's: it is opened without a way out of the folder of images.
#pragma once

#include "common/unique_fd.h"
#include "migrator/config.h"

#include <cstdint>
#include <string>

namespace drover {

// `image`: below site.images, as a whole path or from there on. To be read, with the lock of a
// reader until it is closed. Throws Error(refused) for what may not be taken: outside, not a
// regular file, another disk's than the one with this UUID, or in use by somebody who writes it.
UniqueFd open_base(const SiteConfig& site, const std::string& image, const std::string& uuid);

// Makes `path`, of so many bytes, with what the base has as far as that goes, and zeroes behind it:
// by reflink where the file system can, else by a copy that keeps the holes. Durable. Either all of
// it is there afterwards or nothing. Throws Error(io).
void seed_image(int base, const std::string& path, uint64_t size);

} // namespace drover
