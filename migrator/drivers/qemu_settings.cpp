// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/qemu_settings.h"

#include "common/secrets.h"
#include "migrator/paths.h"

#include <unistd.h>

namespace drover::qemu {
namespace {

using Json = Qmp::Json;

// TLS 1.3 offers PSK with (EC)DHE first, and QEMU adds the PSK key exchanges by itself. AES
// because GnuTLS prefers ChaCha20, which is ten times slower where the CPU has AES.
constexpr const char* tls_priority =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305";

std::string key_file(const std::string& key_dir) {
    return key_dir + "/keys.psk";
}

} // namespace

asio::awaitable<void>
set_ways(std::shared_ptr<Qmp> qmp, std::vector<std::string> capabilities, MemoryWays ways) {
    const bool several = ways.connections > 1 || ways.compress == "zstd";
    std::map<std::string, bool> wanted{{"auto-converge", ways.auto_converge},
                                       {"xbzrle", ways.compress == "xbzrle"},
                                       {"multifd", several},
                                       {"postcopy-ram", ways.postcopy}};
    for (const std::string& name : capabilities) {
        wanted[name] = true;
    }
    Json list = Json::array();
    for (const auto& [name, on] : wanted) {
        Json entry{{"capability", name}, {"state", on}};
        list.push_back(std::move(entry));
    }
    Json arguments{{"capabilities", std::move(list)}};
    co_await qmp->execute("migrate-set-capabilities", std::move(arguments), command_patience);
    if (several) {
        Json parameters{{"multifd-channels", ways.connections},
                        {"multifd-compression", ways.compress}};
        co_await qmp->execute("migrate-set-parameters", std::move(parameters), command_patience);
    }
}

void write_key(const MemoryLink& link, const std::string& key_dir) {
    make_directories(key_dir, 0700);
    add_psk(key_file(key_dir), link.psk_user, link.psk_key);
}

asio::awaitable<void> add_credentials(std::shared_ptr<Qmp> qmp,
                                      std::string endpoint,
                                      MemoryLink link,
                                      std::string key_dir) {
    write_key(link, key_dir);
    try {
        Json arguments{{"id", credentials}};
        co_await qmp->execute("object-del", std::move(arguments), command_patience);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::state) { // state: there was none, as it should be
            throw;
        }
    }
    Json object{{"qom-type", "tls-creds-psk"},
                {"id", credentials},
                {"endpoint", endpoint},
                {"dir", key_dir},
                {"priority", tls_priority}};
    if (endpoint == "client") {
        object["username"] = link.psk_user;
    }
    co_await qmp->execute("object-add", std::move(object), command_patience);
    Json parameters{{"tls-creds", credentials}};
    co_await qmp->execute("migrate-set-parameters", std::move(parameters), command_patience);
}

bool is_leftover(const Json& parameters, const Json& migration) {
    const std::string status = migration.value("status", "none");
    const bool ours = parameters.value("tls-creds", "") == credentials;
    return status != "none" && (ours || status == "cancelling");
}

void remove_keys(const std::string& key_dir) {
    ::unlink(key_file(key_dir).c_str());
    ::rmdir(key_dir.c_str());
}

std::string migration_uri(const MemoryLink& link) {
    if (link.host == "*") {
        return fmt::format("tcp::{}", link.port);
    }
    const bool ipv6 = link.host.find(':') != std::string::npos;
    return ipv6 ? fmt::format("tcp:[{}]:{}", link.host, link.port)
                : fmt::format("tcp:{}:{}", link.host, link.port);
}

} // namespace drover::qemu
