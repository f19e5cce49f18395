// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as a record file: refused with Error(refused), or a record that is written back as it
// was read. The first byte 's' puts a right first line before the rest, so that what
// stands behind the checksum is reached.
#include "nbd-proxy/record_store.h"
#include "test/fuzz/check.h"

using namespace drover;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (data[0] == 's') {
        bytes = "drover-record 1 " + sha256_hex(bytes) + "\n" + bytes;
    }
    try {
        const Record record = parse_record(bytes, "FILE");
        FUZZ_CHECK(is_possible(record.role, record.stage));
        FUZZ_CHECK(record.tombstones.size() <= max_tombstones);
        FUZZ_CHECK(parse_record(serialize_record(record), "FILE") == record);
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::refused);
    }
    return 0;
}
