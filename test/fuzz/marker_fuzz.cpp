// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as the marker of an image: refused with Error(refused), or a marker that is the same
// when it is written again. The first byte 's' puts the right checksum behind the rest.
#include "common/error.h"
#include "common/secrets.h"
#include "nbd-proxy/image_marker.h"
#include "test/fuzz/check.h"

using namespace drover;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 's') {
        bytes += " " + sha256_hex(bytes).substr(0, 16);
    }
    try {
        const ImageMarker marker = parse_marker(bytes, "FILE");
        FUZZ_CHECK(is_uuid(marker.uuid));
        FUZZ_CHECK(parse_marker(marker_text(marker), "FILE") == marker);
        // As a file has it.
        FUZZ_CHECK(parse_marker(marker_text(marker) + "\n", "FILE") == marker);
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::refused);
    }
    return 0;
}
