// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/memory_ways.h"

#include <fmt/format.h>

namespace drover {

void MemoryWays::check() const {
    if (compress != "none" && compress != "xbzrle" && compress != "zstd") {
        throw Error(ErrorKind::usage,
                    fmt::format("memory compression: none, xbzrle or zstd is expected, not '{}'",
                                compress));
    }
    if (connections < 1 || connections > most_connections) {
        throw Error(ErrorKind::usage,
                    fmt::format("memory connections: 1 to {} are expected, not {}",
                                most_connections,
                                connections));
    }
    // What QEMU sends over several connections goes page by page, with no order between them.
    const bool several = connections > 1 || compress == "zstd";
    if (several && compress == "xbzrle") {
        throw Error(ErrorKind::usage, "xbzrle needs a single connection for the memory");
    }
    if (several && postcopy) {
        throw Error(ErrorKind::usage,
                    "post-copy of the memory goes neither with several connections for it nor with "
                    "zstd: choose one of them");
    }
}

rpc::Json MemoryWays::json() const {
    return {{"compress", compress},
            {"connections", connections},
            {"auto_converge", auto_converge},
            {"postcopy", postcopy}};
}

MemoryWays MemoryWays::of(const rpc::Json& json) {
    rpc::only_params(json, {"compress", "connections", "auto_converge", "postcopy"});
    MemoryWays ways;
    ways.compress = rpc::string_param(json, "compress");
    const uint64_t connections = rpc::uint_param(json, "connections");
    ways.connections =
        static_cast<unsigned>(std::min<uint64_t>(connections, MemoryWays::most_connections + 1));
    ways.auto_converge = rpc::bool_param(json, "auto_converge", false);
    ways.postcopy = rpc::bool_param(json, "postcopy", false);
    ways.check();
    return ways;
}

} // namespace drover
