// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as the state file of a tunnel: refused, or the same when it is written again. The first
// byte 's' puts the right checksum before the rest. Also as key, address and duration.
#include "common/error.h"
#include "common/sealed_json.h"
#include "test/fuzz/check.h"
#include "tunnel/core/address.h"
#include "tunnel/core/keep.h"
#include "tunnel/core/put_up.h"

using namespace drover;
using namespace drover::tunnel;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (const auto mac = parse_mac(bytes)) {
        FUZZ_CHECK(parse_mac(to_text(*mac)) == mac);
    }
    if (const auto prefix = parse_prefix(bytes)) {
        FUZZ_CHECK(parse_prefix(to_text(*prefix)) == prefix);
    }
    parse_keep(bytes);
    if (data[0] == 's') {
        bytes = seal_of(bytes) + " " + bytes + "\n";
    }
    try {
        const PutUp put_up = parse_put_up(bytes, "FILE");
        FUZZ_CHECK(parse_put_up(put_up_text(put_up), "FILE") == put_up);
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::refused);
    }
    return 0;
}
