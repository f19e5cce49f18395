// SPDX-License-Identifier: GPL-2.0-or-later
#include "folder.h"
#include "migrator/dns_message.h"

#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

#include <ldns/ldns.h>
#include <sys/stat.h>

using namespace drover;

namespace {

constexpr const char* key_text = "key \"drover-key\" {\n\talgorithm hmac-sha256;\n"
                                 "\tsecret \"MDEyMzQ1Njc4OWFiY2RlZg==\";\n};\n";

DnsKey key() {
    return parse_dns_key(key_text, "FILE");
}

DnsKey other_secret() {
    DnsKey other = key();
    other.secret = "MDEyMzQ1Njc4OWFiY2RlZw==";
    return other;
}

std::string not_a_key(const std::string& text) {
    try {
        parse_dns_key(text, "FILE");
    } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::usage);
        return error.what();
    }
    return "taken";
}

struct Reply {
    ldns_pkt_rcode code = LDNS_RCODE_NOERROR;
    std::vector<std::string> answers, authorities; // as in a zone file
    bool authoritative = true;
    bool is_signed = true;
};

// What a server says to it.
std::string reply(const DnsRequest& request, const DnsKey& with, const Reply& content) {
    ldns_pkt* packet = nullptr;
    REQUIRE(ldns_wire2pkt(&packet,
                          reinterpret_cast<const uint8_t*>(request.bytes.data()),
                          request.bytes.size()) == LDNS_STATUS_OK);
    ldns_rr_free(ldns_pkt_tsig(packet));
    ldns_pkt_set_tsig(packet, nullptr);
    for (const auto section : {LDNS_SECTION_ANSWER, LDNS_SECTION_AUTHORITY}) {
        ldns_rr_list* const list =
            section == LDNS_SECTION_ANSWER ? ldns_pkt_answer(packet) : ldns_pkt_authority(packet);
        while (ldns_rr* const record = ldns_rr_list_pop_rr(list)) { // an update's
            ldns_rr_free(record);
        }
        ldns_pkt_set_section_count(packet, section, 0);
    }
    ldns_pkt_set_qr(packet, true);
    ldns_pkt_set_aa(packet, content.authoritative);
    ldns_pkt_set_rcode(packet, content.code);
    const auto push = [packet](ldns_pkt_section section, const std::vector<std::string>& texts) {
        for (const std::string& text : texts) {
            ldns_rr* record = nullptr;
            REQUIRE(ldns_rr_new_frm_str(&record, text.c_str(), 0, nullptr, nullptr) ==
                    LDNS_STATUS_OK);
            ldns_pkt_push_rr(packet, section, record);
        }
    };
    push(LDNS_SECTION_ANSWER, content.answers);
    push(LDNS_SECTION_AUTHORITY, content.authorities);
    if (content.is_signed) {
        ldns_rdf* const mac =
            ldns_rdf_new_frm_data(LDNS_RDF_TYPE_INT16_DATA, request.mac.size(), request.mac.data());
        REQUIRE(
            ldns_pkt_tsig_sign(
                packet, with.name.c_str(), with.secret.c_str(), 300, with.algorithm.c_str(), mac) ==
            LDNS_STATUS_OK);
        ldns_rdf_deep_free(mac);
    }
    uint8_t* bytes = nullptr;
    size_t size = 0;
    REQUIRE(ldns_pkt2wire(&bytes, packet, &size) == LDNS_STATUS_OK);
    std::string wire(reinterpret_cast<const char*>(bytes), size);
    std::free(bytes);
    ldns_pkt_free(packet);
    return wire;
}

DnsRequest question() {
    return dns_question("vm1.example.org.", DnsType::a, key());
}

std::string unread(const DnsRequest& request, const std::string& bytes, std::time_t now) {
    try {
        read_dns_answer(request, bytes, key(), now);
    } catch (const Error& error) {
        return error.what();
    }
    return "read";
}

} // namespace

TEST_CASE("a key is read as BIND's tools write it, and nothing else") {
    CHECK(key().name == "drover-key.");
    CHECK(key().algorithm == "hmac-sha256.");
    CHECK(key().secret == "MDEyMzQ1Njc4OWFiY2RlZg==");
    const DnsKey commented =
        parse_dns_key("# a\n// b\n/* c\n */ key Drover.Key. { secret \"AAAA\"; /* d */ "
                      "algorithm \"HMAC-SHA512.\"; }; // e",
                      "FILE");
    CHECK(commented.name == "drover.key.");
    CHECK(commented.algorithm == "hmac-sha512.");
    CHECK(not_a_key("").starts_with("FILE: a key as tsig-keygen(8) makes it"));
    const std::string text = key_text;
    CHECK(not_a_key(text + text).starts_with("FILE: a key as"));
    CHECK(not_a_key(text.substr(0, text.size() - 2)).starts_with("FILE: a key as"));
    CHECK(not_a_key("key \"a b\" { algorithm hmac-sha256; secret \"AAAA\"; };") ==
          "FILE: the key's name is no domain name");
    CHECK(not_a_key("key a { algorithm hmac-md5; secret \"AAAA\"; };") ==
          "FILE: the algorithm hmac-sha1, hmac-sha256, hmac-sha512 is expected, not hmac-md5");
    CHECK(not_a_key("key a { algorithm hmac-sha256; secret \"/secret/?\"; };") ==
          "FILE: the secret is not base64");
    CHECK(not_a_key("key a { secret \"AAAA\"; secret \"AAAA\"; };").starts_with("FILE: a key as"));
    CHECK(not_a_key("key \"a").ends_with("a string has no end"));
}

TEST_CASE("a key file is its owner's alone") {
    const Folder folder;
    const std::string path = folder.file("key");
    std::ofstream(path) << key_text;
    REQUIRE(::chmod(path.c_str(), 0600) == 0);
    CHECK(load_dns_key(path).name == "drover-key.");
    REQUIRE(::chmod(path.c_str(), 0640) == 0);
    CHECK_THROWS_WITH_AS(load_dns_key(path), doctest::Contains("mode 0600"), Error);
    CHECK_THROWS_WITH_AS(load_dns_key(folder.file("")), doctest::Contains("a file is"), Error);
    CHECK_THROWS_WITH_AS(load_dns_key(path + "x"), doctest::Contains("No such file"), Error);
}

TEST_CASE("names and addresses have one spelling") {
    CHECK(canonical_dns_name("VM1.Example.org") == "vm1.example.org.");
    CHECK(canonical_dns_name("_a.b-c.") == "_a.b-c.");
    const std::string label(63, 'a');
    CHECK(canonical_dns_name(label + ".b").has_value());
    for (const std::string& bad : {std::string(),
                                   std::string("."),
                                   std::string("a..b"),
                                   std::string(".a"),
                                   std::string("a b"),
                                   std::string("a\\.b"),
                                   label + "a",
                                   label + "." + label + "." + label + "." + label}) {
        CAPTURE(bad);
        CHECK(!canonical_dns_name(bad));
    }
    CHECK(canonical_ip("2001:DB8:0:0::10") == "2001:db8::10");
    CHECK(reverse_dns_name("10.1.0.7") == "7.0.1.10.in-addr.arpa.");
    CHECK(reverse_dns_name("2001:db8::1") ==
          "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.");
}

TEST_CASE("a signed answer is read") {
    const DnsRequest asked = question();
    const std::time_t now = std::time(nullptr);
    Reply content;
    content.answers = {"VM1.example.org. 60 IN A 10.1.0.10",
                       "vm1.example.org. 60 IN A 10.1.0.11",
                       "other.example.org. 60 IN A 10.9.9.9"};
    const DnsAnswer answer = read_dns_answer(asked, reply(asked, key(), content), key(), now);
    CHECK(answer.code == 0);
    CHECK(answer.authoritative);
    CHECK(!answer.is_alias);
    CHECK(answer.records ==
          DnsRecords{"vm1.example.org.", DnsType::a, 60, {"10.1.0.10", "10.1.0.11"}});
    CHECK(text_of(answer.records) == "vm1.example.org. A 10.1.0.10, 10.1.0.11 (TTL 60)");

    Reply none;
    none.code = LDNS_RCODE_NXDOMAIN;
    none.authoritative = false;
    none.authorities = {"example.org. 60 IN SOA ns.example.org. a.example.org. 1 2 3 4 5"};
    const DnsAnswer nothing = read_dns_answer(asked, reply(asked, key(), none), key(), now);
    CHECK(dns_code_name(nothing.code) == "NXDOMAIN");
    CHECK(!nothing.authoritative);
    CHECK(nothing.zone == "example.org.");
    CHECK(nothing.records.data.empty());

    Reply alias;
    alias.answers = {"vm1.example.org. 60 IN CNAME vm2.example.org."};
    CHECK(read_dns_answer(asked, reply(asked, key(), alias), key(), now).is_alias);

    const DnsRecords before{"vm1.example.org.", DnsType::a, 60, {"10.1.0.10"}};
    const DnsRequest update = dns_update("example.org.", {{before, before}}, key());
    Reply refused;
    refused.code = LDNS_RCODE_NXRRSET;
    const DnsAnswer said = read_dns_answer(update, reply(update, key(), refused), key(), now);
    CHECK(dns_code_name(said.code) == "NXRRSET");
}

TEST_CASE("an answer that is not signed as it should be is not believed") {
    const DnsRequest asked = question();
    const std::time_t now = std::time(nullptr);
    Reply content;
    content.answers = {"vm1.example.org. 60 IN A 10.1.0.10"};
    const std::string right = reply(asked, key(), content);
    CHECK(unread(asked, right, now) == "read");
    CHECK(unread(asked, right, now + 302).find("BADTIME") != std::string::npos);
    CHECK(unread(asked, right, now - 302).find("BADTIME") != std::string::npos);
    CHECK(unread(asked, reply(asked, other_secret(), content), now) ==
          "its answer has a wrong signature for the key 'drover-key.'");
    CHECK(unread(question(), right, now) == "what it answers is not for this question");
    DnsRequest same_number = question();
    same_number.id = asked.id;
    same_number.mac.back() ^= 1;
    CHECK(unread(same_number, right, now).find("wrong signature") != std::string::npos);
    Reply unsigned_one = content;
    unsigned_one.is_signed = false;
    CHECK(unread(asked, reply(asked, key(), unsigned_one), now) ==
          "its answer (NOERROR) is not signed with the key 'drover-key.'");
    CHECK(unread(asked, asked.bytes, now) == "what it answers is not for this question");
    CHECK(unread(asked, std::string(longest_dns_answer + 1, 'x'), now) ==
          "what it answers is no DNS message");
}

TEST_CASE("an answer that was cut or changed anywhere is refused, or says the same") {
    const DnsRequest asked = question();
    const std::time_t now = std::time(nullptr);
    Reply content;
    content.answers = {"vm1.example.org. 60 IN A 10.1.0.10"};
    content.authorities = {"example.org. 60 IN NS ns.example.org."};
    const std::string right = reply(asked, key(), content);
    for (size_t size = 0; size < right.size(); ++size) {
        CHECK(unread(asked, right.substr(0, size), now) != "read");
    }
    for (size_t at = 0; at < right.size(); ++at) {
        for (unsigned bit = 0; bit < 8; ++bit) {
            std::string changed = right;
            changed[at] = static_cast<char>(changed[at] ^ (1U << bit));
            try {
                const DnsAnswer answer = read_dns_answer(asked, changed, key(), now);
                CHECK(answer.code == 0);
                CHECK(answer.records.ttl == 60);
                CHECK(answer.records.data == std::set<std::string>{"10.1.0.10"});
            } catch (const Error& error) {
                CHECK(error.kind() != ErrorKind::usage);
            }
        }
    }
}
