// SPDX-License-Identifier: GPL-2.0-or-later
// Any bytes as the answer of a DNS server, as they come and signed with the right key; as a key
// file; and as what is kept of records.
#include "migrator/dns_records.h"
#include "test/fuzz/check.h"

#include <ldns/ldns.h>

using namespace drover;

namespace {

const DnsKey& key() {
    static const DnsKey one = parse_dns_key(
        "key k { algorithm hmac-sha256; secret \"MDEyMzQ1Njc4OWFiY2RlZg==\"; };", "KEY");
    return one;
}

const DnsRequest& request() {
    static const DnsRequest one = [] {
        DnsRequest made = dns_question("vm1.example.org.", DnsType::a, key());
        made.id = 0x4242; // that of the corpus
        return made;
    }();
    return one;
}

// With their last record replaced by a signature; empty if they are no message.
std::string signed_by_server(const uint8_t* data, size_t size) {
    ldns_pkt* packet = nullptr;
    if (ldns_wire2pkt(&packet, data, size) != LDNS_STATUS_OK) {
        return "";
    }
    ldns_rr_free(ldns_pkt_tsig(packet));
    ldns_pkt_set_tsig(packet, nullptr);
    ldns_rdf* const mac =
        ldns_rdf_new_frm_data(LDNS_RDF_TYPE_INT16_DATA, request().mac.size(), request().mac.data());
    const bool made =
        ldns_pkt_tsig_sign(
            packet, key().name.c_str(), key().secret.c_str(), 300, key().algorithm.c_str(), mac) ==
        LDNS_STATUS_OK;
    ldns_rdf_deep_free(mac);
    uint8_t* bytes = nullptr;
    size_t length = 0;
    std::string wire;
    if (made && ldns_pkt2wire(&bytes, packet, &length) == LDNS_STATUS_OK) {
        wire.assign(reinterpret_cast<const char*>(bytes), length);
    }
    std::free(bytes);
    ldns_pkt_free(packet);
    return wire;
}

void read_answer(std::string_view bytes, bool may_be_right) {
    try {
        const DnsAnswer answer = read_dns_answer(request(), bytes, key(), std::time(nullptr));
        FUZZ_CHECK(may_be_right);
        FUZZ_CHECK(answer.records.name == request().name);
        for (const std::string& data : answer.records.data) {
            FUZZ_CHECK(canonical_ip(data) == data);
        }
        text_of(answer.records);
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::peer || error.kind() == ErrorKind::refused);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    if (size <= longest_dns_answer) {
        read_answer(text, false);
        read_answer(signed_by_server(data, size), true);
    }
    try {
        parse_dns_key(text, "KEY");
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::usage);
    }
    try {
        const DnsState state = parse_dns_state(text, "FILE");
        FUZZ_CHECK(parse_dns_state(dns_state_text(state), "FILE") == state);
        moved(state, {"10.2.0.10", "2001:db8::10"});
    } catch (const Error& error) {
        FUZZ_CHECK(error.kind() == ErrorKind::refused);
    }
    return 0;
}
