// SPDX-License-Identifier: GPL-2.0-or-later
// The key that a DNS server knows this host by, and how names and addresses are written there. Any
// thread.
#pragma once

#include "common/error.h"

#include <optional>
#include <string>
#include <string_view>

namespace drover {

// ASCII: names and algorithms are the same in either case.
std::string in_lower_case(std::string text);

struct DnsKey {
    std::string name;      // a domain name, with its last dot, in lower case
    std::string algorithm; // likewise: "hmac-sha256."
    std::string secret;    // base64
};

// As BIND has it (tsig-keygen): key "NAME" { algorithm ALGORITHM; secret "BASE64"; }; with
// comments, and nothing else. Throws Error(usage), "PATH: what is wrong", without the secret.
DnsKey parse_dns_key(std::string_view text, const std::string& path);

// The key of a file that is its owner's alone, who is root or our own user. Throws the same.
DnsKey load_dns_key(const std::string& path);

// In lower case, with a last dot; nullopt for what is no name of a host.
std::optional<std::string> canonical_dns_name(const std::string& name);
// As the DNS writes it: "2001:db8::10". The address is a valid one.
std::string canonical_ip(const std::string& address);

} // namespace drover
