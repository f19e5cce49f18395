// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/dns_key.h"

#include "common/unique_fd.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <map>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <ldns/ldns.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr size_t longest_key_file = 16384;
constexpr size_t longest_name = 253, longest_label = 63;
// Those that ldns 1.8 has, but for HMAC-MD5.
constexpr std::array<std::string_view, 3> algorithms{"hmac-sha1", "hmac-sha256", "hmac-sha512"};

// Words, strings without their quotes, and each of { } ; by itself.
std::vector<std::string> key_tokens(std::string_view text, const std::string& path) {
    std::vector<std::string> tokens;
    size_t at = 0;
    const auto skip_to = [&](std::string_view end) {
        const size_t found = text.find(end, at);
        at = found == std::string_view::npos ? text.size() : found + end.size();
    };
    while (at < text.size()) {
        const char c = text[at];
        if (std::isspace(static_cast<unsigned char>(c)) != 0) {
            ++at;
        } else if (c == '#' || text.substr(at, 2) == "//") {
            skip_to("\n");
        } else if (text.substr(at, 2) == "/*") {
            skip_to("*/");
        } else if (c == '{' || c == '}' || c == ';') {
            tokens.emplace_back(1, c);
            ++at;
        } else if (c == '"') {
            const size_t end = text.find('"', at + 1);
            if (end == std::string_view::npos) {
                throw Error(ErrorKind::usage, fmt::format("{}: a string has no end", path));
            }
            tokens.emplace_back(text.substr(at + 1, end - at - 1));
            at = end + 1;
        } else {
            const size_t end = std::min(text.find_first_of("{};\" \t\r\n", at), text.size());
            tokens.emplace_back(text.substr(at, end - at));
            at = end;
        }
    }
    return tokens;
}

bool is_base64(const std::string& text) {
    ldns_rdf* const bytes = ldns_rdf_new_frm_str(LDNS_RDF_TYPE_B64, text.c_str());
    const bool right = bytes != nullptr && ldns_rdf_size(bytes) != 0 &&
                       text.find_first_of(" \t\r\n") == std::string::npos;
    ldns_rdf_deep_free(bytes);
    return right;
}

} // namespace

std::string in_lower_case(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
        return static_cast<char>(std::tolower(c));
    });
    return text;
}

DnsKey parse_dns_key(std::string_view text, const std::string& path) {
    const auto fail = [&path](const std::string& what) {
        throw Error(ErrorKind::usage, fmt::format("{}: {}", path, what));
    };
    const std::vector<std::string> tokens = key_tokens(text, path);
    std::map<std::string, std::string> values;
    bool whole = tokens.size() == 11 && tokens[0] == "key" && tokens[2] == "{" &&
                 tokens[9] == "}" && tokens[10] == ";";
    for (size_t i = 3; whole && i < 9; i += 3) {
        whole = tokens[i + 2] == ";" && values.emplace(tokens[i], tokens[i + 1]).second;
    }
    if (!whole || !values.contains("algorithm") || !values.contains("secret")) {
        fail("a key as tsig-keygen(8) makes it is expected, and nothing else: key \"NAME\" { "
             "algorithm ALGORITHM; secret \"BASE64\"; };");
    }
    DnsKey key;
    const auto name = canonical_dns_name(tokens[1]);
    if (!name) {
        fail("the key's name is no domain name");
    }
    key.name = *name;
    std::string algorithm = in_lower_case(values["algorithm"]);
    if (algorithm.ends_with('.')) {
        algorithm.pop_back();
    }
    if (std::find(algorithms.begin(), algorithms.end(), algorithm) == algorithms.end()) {
        fail(fmt::format(
            "the algorithm {} is expected, not {}", fmt::join(algorithms, ", "), algorithm));
    }
    key.algorithm = algorithm + ".";
    key.secret = values["secret"];
    if (!is_base64(key.secret)) {
        fail("the secret is not base64");
    }
    return key;
}

DnsKey load_dns_key(const std::string& path) {
    const auto fail = [&path](const std::string& what) {
        throw Error(ErrorKind::usage, fmt::format("{}: {}", path, what));
    };
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    if (!file || ::fstat(file.get(), &info) != 0) {
        fail(std::strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        fail("a file is expected");
    }
    if ((info.st_mode & 077U) != 0 || (info.st_uid != 0 && info.st_uid != ::geteuid())) {
        fail("a secret is in it, so it must be root's or this user's, with mode 0600");
    }
    std::string text(longest_key_file + 1, '\0');
    const ssize_t got = ::read(file.get(), text.data(), text.size());
    if (got < 0) {
        fail(std::strerror(errno));
    }
    text.resize(static_cast<size_t>(got));
    if (text.size() > longest_key_file) {
        fail("it is too long for a key");
    }
    return parse_dns_key(text, path);
}

std::optional<std::string> canonical_dns_name(const std::string& name) {
    std::string text = in_lower_case(name);
    if (text.ends_with('.')) {
        text.pop_back();
    }
    if (text.empty() || text.size() > longest_name) {
        return std::nullopt;
    }
    size_t label = 0;
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
        if (c == '.' ? label == 0 : !plain || label == longest_label) {
            return std::nullopt;
        }
        label = c == '.' ? 0 : label + 1;
    }
    return label == 0 ? std::nullopt : std::optional(text + ".");
}

std::string canonical_ip(const std::string& address) {
    std::array<unsigned char, sizeof(in6_addr)> bytes{};
    std::array<char, INET6_ADDRSTRLEN> text{};
    const int family = address.find(':') == std::string::npos ? AF_INET : AF_INET6;
    if (::inet_pton(family, address.c_str(), bytes.data()) != 1 ||
        ::inet_ntop(family, bytes.data(), text.data(), text.size()) == nullptr) {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no address", address));
    }
    return text.data();
}

} // namespace drover
