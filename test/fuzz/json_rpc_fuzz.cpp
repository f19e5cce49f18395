// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes from a peer of a control socket: split into lines, each of them refused with
// Error(usage) or a message that goes there and back. The first byte is the size of the pieces that
// the bytes arrive in.
#include "common/json_rpc.h"
#include "test/fuzz/check.h"

using namespace drover;

namespace {

void there_and_back(const rpc::Request& request) {
    const auto back = std::get<rpc::Request>(rpc::parse(rpc::serialize(request)));
    FUZZ_CHECK(back.id == request.id);
    FUZZ_CHECK(back.method == request.method);
    FUZZ_CHECK(back.params == request.params);
}

void there_and_back(const rpc::Response& response) {
    const auto back = std::get<rpc::Response>(rpc::parse(rpc::serialize(response)));
    FUZZ_CHECK(back.id == response.id);
    FUZZ_CHECK(back.result == response.result);
    FUZZ_CHECK(back.error.has_value() == response.error.has_value());
    FUZZ_CHECK(!back.error || (back.error->kind() == response.error->kind() &&
                               std::string_view(back.error->what()) == response.error->what()));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) {
        return 0;
    }
    const size_t piece = size_t(data[0]) + 1;
    std::string_view left(reinterpret_cast<const char*>(data) + 1, size - 1);
    rpc::LineBuffer buffer;
    while (!left.empty()) {
        buffer.append(left.substr(0, piece));
        left.remove_prefix(std::min(piece, left.size()));
        while (const auto line = buffer.next()) {
            try {
                const rpc::Message message = rpc::parse(*line);
                std::visit([](const auto& whole) { there_and_back(whole); }, message);
            } catch (const Error& error) {
                FUZZ_CHECK(error.kind() == ErrorKind::usage);
            }
        }
    }
    return 0;
}
