// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/core/rules.h"

#include "common/secrets.h"

#include <algorithm>

#include <fmt/format.h>

namespace drover::tunnel {
namespace {

constexpr uint32_t tunnel_mark = 0x64727674; // "drvt"
constexpr int priority = -450;               // before what others have there

std::string set_of(const std::vector<std::string>& members) {
    return fmt::format("{{ {} }}", fmt::join(members, ", "));
}

std::string network_of(const Prefix& prefix) {
    Prefix network = prefix;
    for (size_t bit = prefix.length; bit < 8 * network.address.size(); ++bit) {
        network.address.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80 >> bit % 8));
    }
    return to_text(network);
}

struct Texts {
    std::vector<std::string> v4, v6, v6_targets, networks;

    explicit Texts(const Nic& nic) {
        for (const Prefix& prefix : nic.addresses) {
            if (prefix.address.version == 4) {
                v4.push_back(to_text(prefix.address));
                networks.push_back(network_of(prefix));
            } else {
                v6.push_back(to_text(prefix.address));
                v6_targets.push_back(nd_targets(prefix));
            }
        }
        for (const Ip& gateway : nic.gateways) {
            if (gateway.version == 6) {
                v6_targets.push_back(nd_targets({gateway, 128}));
            }
        }
        std::sort(networks.begin(), networks.end()); // several addresses in one network
        networks.erase(std::unique(networks.begin(), networks.end()), networks.end());
    }

    // The target of a solicitation is behind 8 bytes of ICMPv6.
    static std::string nd_targets(const Prefix& prefix) {
        const size_t bytes = (prefix.length + 7U) / 8;
        std::string digits, mask;
        for (size_t i = 0; i < bytes; ++i) {
            const size_t beyond = 8 * (i + 1) - std::min<size_t>(prefix.length, 8 * (i + 1));
            const auto bits = static_cast<uint8_t>(0xff << beyond);
            digits += fmt::format("{:02x}", prefix.address.bytes[i] & bits);
            mask += fmt::format("{:02x}", bits);
        }
        if (bytes == 0) {
            return "";
        }
        return prefix.length % 8 == 0
                   ? fmt::format("@th,64,{} 0x{}", 8 * bytes, digits)
                   : fmt::format("@th,64,{} & 0x{} == 0x{}", 8 * bytes, mask, digits);
    }
};

} // namespace

std::string table_name(std::string_view tunnel) {
    constexpr size_t digits = 12;
    return "drover_" + sha256_hex(tunnel).substr(0, digits);
}

std::string remove_rules(const std::string& table) {
    return fmt::format("add table netdev {0}\ndelete table netdev {0}\n", table);
}

std::string away_rules(const std::string& table,
                       const std::string& port,
                       const std::string& device,
                       const Nic& nic) {
    const Texts texts(nic);
    const std::string home = fmt::format("counter fwd to \"{}\"\n", device);
    std::string from_vm, to_vm;
    const auto rule = [](std::string& chain, const std::string& match, const std::string& verdict) {
        chain += "    " + match + " " + verdict;
    };
    const std::string here = "counter drop\n";
    const std::string transaction = "@th,96,32", from_server = "udp sport 67 udp dport 68 ";
    if (!texts.v4.empty()) {
        const std::string set = set_of(texts.v4);
        rule(from_vm, "ip saddr " + set, home);
        rule(from_vm, "arp saddr ip " + set, home);
        // A client's first option is the type: a request. Not the answer to an offer of this site.
        rule(from_vm,
             "ip saddr 0.0.0.0 udp sport 68 udp dport 67 @th,1984,24 0x350103 " + transaction +
                 " != @offered",
             home);
        rule(to_vm,
             from_server + "@th,1984,24 0x350102",
             "update @offered { " + transaction + " }\n");
        rule(to_vm, from_server + "@th,1984,24 0x350106 " + transaction + " != @offered", here);
        rule(from_vm, "arp saddr ip 0.0.0.0 arp daddr ip " + set, home);
        rule(to_vm, "ip daddr " + set, here);
        rule(to_vm, "arp daddr ip " + set, here);
        rule(to_vm, "arp saddr ip " + set_of(texts.networks), here);
    }
    if (!texts.v6.empty()) {
        rule(from_vm, "ip6 saddr " + set_of(texts.v6), home);
        rule(from_vm, "icmpv6 type nd-router-solicit", home);
        rule(to_vm, "icmpv6 type nd-router-advert", here);
        rule(to_vm, "ip6 daddr " + set_of(texts.v6), here);
    }
    for (const std::string& target : texts.v6_targets) {
        if (!target.empty()) {
            rule(from_vm, "icmpv6 type nd-neighbor-solicit " + target, home);
            rule(to_vm, "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } " + target, here);
        }
    }
    return remove_rules(table) +
           fmt::format("table netdev {0} {{\n"
                       "  set offered {{\n" // DHCP transactions of this site
                       "    typeof @th,96,32; flags dynamic, timeout; timeout 1m; size 256;\n"
                       "  }}\n"
                       "  chain from_vm {{\n"
                       "    type filter hook ingress device \"{1}\" priority {3}; policy accept;\n"
                       "    ether saddr != {5} accept\n"
                       "{6}"
                       "  }}\n"
                       "  chain from_tunnel {{\n"
                       "    type filter hook ingress device \"{2}\" priority {3}; policy drop;\n"
                       "    meta mark set {4:#x} counter fwd to \"{1}\"\n"
                       "  }}\n"
                       "  chain to_vm {{\n"
                       "    type filter hook egress device \"{1}\" priority {3}; policy accept;\n"
                       "    meta mark {4:#x} accept\n"
                       "{7}"
                       "  }}\n"
                       "}}\n",
                       table,
                       port,
                       device,
                       priority,
                       tunnel_mark,
                       to_text(nic.mac),
                       from_vm,
                       to_vm);
}

} // namespace drover::tunnel
