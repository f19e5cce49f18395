// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/disk_context.h"

#include "common/error.h"
#include "common/secrets.h"

namespace drover {

std::array<std::byte, 16> uuid_bytes(std::string uuid) {
    std::erase(uuid, '-');
    std::erase(uuid, '\n');
    return bytes_of<16>(from_hex(uuid).value_or(""));
}

NbdClientOptions
peer_options(const EngineOptions& options, const rpc::Json& to, const std::string& key_name) {
    rpc::only_params(to, {"host", "port", "psk_user", "psk_key", "socket", "uri"});
    NbdClientOptions peer;
    if (const auto uri = rpc::optional_string_param(to, "uri")) {
        peer.uri = *uri;
        return peer;
    }
    if (const auto socket = rpc::optional_string_param(to, "socket")) {
        peer.socket = *socket;
        return peer;
    }
    peer.host = rpc::string_param(to, "host");
    peer.port = std::to_string(rpc::uint_param(to, "port"));
    peer.psk_user = rpc::string_param(to, "psk_user");
    peer.psk_file = options.state_dir + "/" + key_name;
    add_psk(peer.psk_file, peer.psk_user, rpc::string_param(to, "psk_key"));
    return peer;
}

std::string migration_param(const rpc::Json& params) {
    std::string id = rpc::string_param(params, "migration");
    if (!parse_migration_id(id)) {
        throw Error(ErrorKind::usage, "parameter 'migration': 32 hexadecimal digits are expected");
    }
    return id;
}

} // namespace drover
