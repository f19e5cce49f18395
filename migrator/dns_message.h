// SPDX-License-Identifier: GPL-2.0-or-later
// Messages of the DNS: signed questions and updates (RFC 2136), and the answers to them, whose
// signature (TSIG, RFC 8945) is checked before anything of them is believed. Without I/O; any
// thread.
#pragma once

#include "migrator/dns_key.h"

#include <ctime>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace drover {

// The name that has the PTR record of a valid address.
std::string reverse_dns_name(const std::string& address);

// Their numbers in messages.
enum class DnsType : uint16_t { a = 1, soa = 6, ptr = 12, aaaa = 28 };
std::string_view type_name(DnsType type); // "AAAA"

// What a name has of a type.
struct DnsRecords {
    std::string name; // canonical, as all that follow
    DnsType type = DnsType::a;
    uint32_t ttl = 0;           // seconds
    std::set<std::string> data; // addresses, or names; empty: it has none of the type
    bool operator==(const DnsRecords&) const = default;
};
// "vm1.example.org. A 10.1.0.10 (TTL 3600)", "vm1.example.org. A: none"
std::string text_of(const DnsRecords& records);

// One set of records of a zone, before and after an update.
struct DnsUpdate {
    DnsRecords from; // the server refuses the whole where it has other data, whatever their TTL
    DnsRecords to;   // of the same name and type
};

struct DnsRequest {
    std::string bytes;
    uint16_t id = 0;
    std::string name; // what it asks for; of an update the zone
    DnsType type = DnsType::soa;
    bool is_update = false;
    std::string mac; // in wire format: the answer's is made with it
};
DnsRequest dns_question(const std::string& name, DnsType type, const DnsKey& key);
// All or nothing. Where an update's `to` equals its `from`, nothing changes.
DnsRequest
dns_update(const std::string& zone, const std::vector<DnsUpdate>& updates, const DnsKey& key);

// Longer ones are not read: these have a few records each.
inline constexpr size_t longest_dns_answer = 8192;

struct DnsAnswer {
    uint16_t code = 0; // RFC 6895: 0 NOERROR, 3 NXDOMAIN, 5 REFUSED, ...
    bool authoritative = false;
    bool is_alias = false; // the name that was asked for has a CNAME
    DnsRecords records;    // those that were asked for; of a SOA none
    std::string zone;      // whose SOA it has, "": none
};
// "NXRRSET"
std::string dns_code_name(uint16_t code);

// `now`: seconds since 1970. Throws Error(peer) for what is no answer to the request,
// Error(refused) where the server does not take the key, or has not signed the answer with it.
DnsAnswer read_dns_answer(const DnsRequest& request,
                          std::string_view bytes,
                          const DnsKey& key,
                          std::time_t now);

} // namespace drover
