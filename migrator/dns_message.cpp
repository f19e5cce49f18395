// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_message.h"

#include "common/secrets.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include <arpa/inet.h>
#include <ldns/ldns.h>

namespace drover {
namespace {

// What the clocks of both sides may differ by (RFC 8945, 10).
constexpr uint16_t fudge_s = 300;
// Errors in a TSIG (RFC 8945, 3).
constexpr uint16_t bad_signature = 16, bad_key = 17, bad_time = 18;

struct Free {
    void operator()(ldns_pkt* packet) const { ldns_pkt_free(packet); }
    void operator()(ldns_rr_list* list) const { ldns_rr_list_deep_free(list); }
    void operator()(ldns_rr* record) const { ldns_rr_free(record); }
    void operator()(ldns_rdf* field) const { ldns_rdf_deep_free(field); }
    void operator()(char* text) const { std::free(text); }
    void operator()(uint8_t* bytes) const { std::free(bytes); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

template <class T>
Owned<T> owned(T* pointer) {
    if (pointer == nullptr) {
        throw std::bad_alloc();
    }
    return Owned<T>(pointer);
}

Owned<ldns_rdf> field(ldns_rdf_type type, const std::string& text) {
    Owned<ldns_rdf> made(ldns_rdf_new_frm_str(type, text.c_str()));
    if (!made) {
        throw Error(ErrorKind::usage, fmt::format("'{}' can't be written in the DNS", text));
    }
    return made;
}

std::string text_of_field(const ldns_rdf* value) {
    return value == nullptr ? std::string() : in_lower_case(owned(ldns_rdf2str(value)).get());
}

ldns_rdf_type field_type(DnsType type) {
    return type == DnsType::a      ? LDNS_RDF_TYPE_A
           : type == DnsType::aaaa ? LDNS_RDF_TYPE_AAAA
                                   : LDNS_RDF_TYPE_DNAME;
}

// Without data, if `data` is empty.
void push(ldns_rr_list* list,
          const DnsRecords& of,
          ldns_rr_class record_class,
          uint32_t ttl,
          const std::string& data) {
    auto record = owned(ldns_rr_new());
    ldns_rr_set_owner(record.get(), field(LDNS_RDF_TYPE_DNAME, of.name).release());
    ldns_rr_set_type(record.get(), static_cast<ldns_rr_type>(of.type));
    ldns_rr_set_class(record.get(), record_class);
    ldns_rr_set_ttl(record.get(), ttl);
    if (!data.empty()) {
        auto value = field(field_type(of.type), data);
        if (!ldns_rr_push_rdf(record.get(), value.get())) {
            throw std::bad_alloc();
        }
        value.release();
    }
    if (!ldns_rr_list_push_rr(list, record.get())) {
        throw std::bad_alloc();
    }
    record.release();
}

DnsRequest sign(Owned<ldns_pkt> packet, DnsRequest request, const DnsKey& key) {
    const std::string random = random_bytes(sizeof request.id);
    std::copy(random.begin(), random.end(), reinterpret_cast<char*>(&request.id));
    ldns_pkt_set_id(packet.get(), request.id);
    ldns_pkt_set_rd(packet.get(), false);
    const ldns_status status = ldns_pkt_tsig_sign(packet.get(),
                                                  key.name.c_str(),
                                                  key.secret.c_str(),
                                                  fudge_s,
                                                  key.algorithm.c_str(),
                                                  nullptr);
    if (status != LDNS_STATUS_OK) {
        throw Error(ErrorKind::usage,
                    fmt::format("the DNS key '{}' can't sign: {}",
                                key.name,
                                ldns_get_errorstr_by_id(status)));
    }
    const ldns_rdf* const mac = ldns_rr_rdf(ldns_pkt_tsig(packet.get()), 3);
    request.mac.assign(reinterpret_cast<const char*>(ldns_rdf_data(mac)), ldns_rdf_size(mac));
    uint8_t* bytes = nullptr;
    size_t size = 0;
    if (ldns_pkt2wire(&bytes, packet.get(), &size) != LDNS_STATUS_OK) {
        throw std::bad_alloc();
    }
    const Owned<uint8_t> keep(bytes);
    request.bytes.assign(reinterpret_cast<const char*>(bytes), size);
    return request;
}

// --- answers

uint16_t number(const ldns_rdf* value) {
    return value == nullptr ? uint16_t{0} : ldns_rdf2native_int16(value);
}

[[noreturn]] void refuse_key(uint16_t error, const DnsKey& key) {
    switch (error) {
    case bad_signature:
        throw Error(ErrorKind::refused,
                    fmt::format("it has another secret for the key '{}' (BADSIG)", key.name));
    case bad_key:
        throw Error(ErrorKind::refused,
                    fmt::format("it knows no key '{}' of {} (BADKEY)", key.name, key.algorithm));
    case bad_time:
        throw Error(
            ErrorKind::refused,
            fmt::format("its clock and this host's differ by more than {} s (BADTIME)", fudge_s));
    default:
        throw Error(ErrorKind::refused,
                    fmt::format("it does not take the key '{}' (error {})", key.name, error));
    }
}

// Whether it is signed as it should be, at about `now`.
void check_signature(ldns_pkt* packet,
                     const DnsRequest& request,
                     std::string_view bytes,
                     const DnsKey& key,
                     std::time_t now) {
    ldns_rr* const signature = ldns_pkt_tsig(packet);
    if (signature == nullptr || ldns_rr_rd_count(signature) != 7) {
        throw Error(ErrorKind::refused,
                    fmt::format("its answer ({}) is not signed with the key '{}'",
                                dns_code_name(ldns_pkt_get_rcode(packet)),
                                key.name));
    }
    const uint16_t error = number(ldns_rr_rdf(signature, 5));
    if (error != 0) { // such an answer is not signed, or not with this secret
        refuse_key(error, key);
    }
    const auto mac = owned(
        ldns_rdf_new_frm_data(LDNS_RDF_TYPE_INT16_DATA, request.mac.size(), request.mac.data()));
    const bool right = ldns_pkt_tsig_verify(packet,
                                            reinterpret_cast<const uint8_t*>(bytes.data()),
                                            bytes.size(),
                                            key.name.c_str(),
                                            key.secret.c_str(),
                                            mac.get());
    ldns_pkt_set_tsig(packet, signature); // it forgets it where it fails
    if (!right) {
        throw Error(ErrorKind::refused,
                    fmt::format("its answer has a wrong signature for the key '{}'", key.name));
    }
    const ldns_rdf* const time = ldns_rr_rdf(signature, 1);
    uint64_t signed_at = 0;
    for (size_t i = 0; i < ldns_rdf_size(time); ++i) {
        signed_at = signed_at << 8 | ldns_rdf_data(time)[i];
    }
    const auto here = static_cast<uint64_t>(now);
    if (signed_at + fudge_s < here || here + fudge_s < signed_at) {
        refuse_key(bad_time, key);
    }
}

bool is_answer_to(const DnsRequest& request, const ldns_pkt* packet) {
    if (!ldns_pkt_qr(packet) || ldns_pkt_id(packet) != request.id || ldns_pkt_tc(packet) ||
        (ldns_pkt_get_opcode(packet) == LDNS_PACKET_UPDATE) != request.is_update) {
        return false;
    }
    const ldns_rr_list* const questions = ldns_pkt_question(packet);
    if (ldns_rr_list_rr_count(questions) == 0) {
        return request.is_update || ldns_pkt_get_rcode(packet) != LDNS_RCODE_NOERROR;
    }
    const ldns_rr* const question = ldns_rr_list_rr(questions, 0);
    return text_of_field(ldns_rr_owner(question)) == request.name &&
           ldns_rr_get_type(question) == static_cast<ldns_rr_type>(request.type);
}

void take(DnsAnswer& answer, const DnsRequest& request, const ldns_rr* record) {
    const ldns_rr_type type = ldns_rr_get_type(record);
    const std::string owner = text_of_field(ldns_rr_owner(record));
    if (ldns_rr_get_class(record) != LDNS_RR_CLASS_IN) {
        return;
    }
    if (type == LDNS_RR_TYPE_SOA) {
        answer.zone = owner;
        return;
    }
    if (owner != request.name) {
        return;
    }
    answer.is_alias = answer.is_alias || type == LDNS_RR_TYPE_CNAME;
    if (type == static_cast<ldns_rr_type>(request.type) && ldns_rr_rd_count(record) == 1) {
        answer.records.ttl = ldns_rr_ttl(record);
        answer.records.data.insert(text_of_field(ldns_rr_rdf(record, 0)));
    }
}

void take_all(DnsAnswer& answer, const DnsRequest& request, const ldns_rr_list* section) {
    for (size_t i = 0; i < ldns_rr_list_rr_count(section); ++i) {
        take(answer, request, ldns_rr_list_rr(section, i));
    }
}

} // namespace

std::string reverse_dns_name(const std::string& address) {
    const bool is_v4 = address.find(':') == std::string::npos;
    const auto value = field(is_v4 ? LDNS_RDF_TYPE_A : LDNS_RDF_TYPE_AAAA, address);
    return text_of_field(owned(ldns_rdf_address_reverse(value.get())).get());
}

std::string_view type_name(DnsType type) {
    switch (type) {
    case DnsType::a:
        return "A";
    case DnsType::soa:
        return "SOA";
    case DnsType::ptr:
        return "PTR";
    case DnsType::aaaa:
        return "AAAA";
    }
    return "?";
}

std::string text_of(const DnsRecords& records) {
    return records.data.empty() ? fmt::format("{} {}: none", records.name, type_name(records.type))
                                : fmt::format("{} {} {} (TTL {})",
                                              records.name,
                                              type_name(records.type),
                                              fmt::join(records.data, ", "),
                                              records.ttl);
}

std::string dns_code_name(uint16_t code) {
    const ldns_lookup_table* const found = ldns_lookup_by_id(ldns_rcodes, code);
    return found != nullptr ? found->name : fmt::format("code {}", code);
}

DnsRequest dns_question(const std::string& name, DnsType type, const DnsKey& key) {
    auto owner = field(LDNS_RDF_TYPE_DNAME, name);
    auto packet = owned(ldns_pkt_query_new(
        owner.get(), static_cast<ldns_rr_type>(type), LDNS_RR_CLASS_IN, uint16_t{0}));
    owner.release();
    DnsRequest request;
    request.name = name;
    request.type = type;
    return sign(std::move(packet), std::move(request), key);
}

DnsRequest
dns_update(const std::string& zone, const std::vector<DnsUpdate>& updates, const DnsKey& key) {
    const auto before = owned(ldns_rr_list_new());
    const auto changes = owned(ldns_rr_list_new());
    for (const auto& [from, to] : updates) {
        for (const std::string& data : from.data) {
            push(before.get(), from, LDNS_RR_CLASS_IN, 0, data); // these, and no other
        }
        if (from.data.empty()) {
            push(before.get(), from, LDNS_RR_CLASS_NONE, 0, ""); // none
        }
        if (from != to || to.data.empty()) {
            push(changes.get(), to, LDNS_RR_CLASS_ANY, 0, ""); // all go
        }
        for (const std::string& data : to.data) {
            push(changes.get(), to, LDNS_RR_CLASS_IN, to.ttl, data);
        }
    }
    auto name = field(LDNS_RDF_TYPE_DNAME, zone);
    auto packet = owned(
        ldns_update_pkt_new(name.get(), LDNS_RR_CLASS_IN, before.get(), changes.get(), nullptr));
    name.release();
    DnsRequest request;
    request.name = zone;
    request.is_update = true;
    return sign(std::move(packet), std::move(request), key);
}

DnsAnswer read_dns_answer(const DnsRequest& request,
                          std::string_view bytes,
                          const DnsKey& key,
                          std::time_t now) {
    ldns_pkt* parsed = nullptr;
    // The limit is ldns's too: beyond 64 KiB with the signature its buffers do not hold.
    if (bytes.size() > longest_dns_answer ||
        ldns_wire2pkt(&parsed, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()) !=
            LDNS_STATUS_OK) {
        throw Error(ErrorKind::peer, "what it answers is no DNS message");
    }
    const Owned<ldns_pkt> packet(parsed);
    if (!is_answer_to(request, packet.get())) {
        throw Error(ErrorKind::peer, "what it answers is not for this question");
    }
    check_signature(packet.get(), request, bytes, key, now);
    DnsAnswer answer;
    answer.code = static_cast<uint16_t>(ldns_pkt_get_rcode(packet.get()));
    answer.authoritative = ldns_pkt_aa(packet.get());
    answer.records.name = request.name;
    answer.records.type = request.type;
    if (!request.is_update) {
        take_all(answer, request, ldns_pkt_answer(packet.get()));
        take_all(answer, request, ldns_pkt_authority(packet.get()));
    }
    return answer;
}

} // namespace drover
