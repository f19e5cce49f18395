// SPDX-License-Identifier: GPL-2.0-or-later
// Strict reading of TOML: every key is asked for by name and type, and what was not asked for is
// an error. Errors are Error(usage), "FILE:LINE: 'KEY': what is wrong, what was expected".
#pragma once

#include "common/error.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#define TOML_HEADER_ONLY 0
#include <toml++/toml.h>

namespace drover {

// One table of a file. The ConfigFile must outlive it.
class ConfigTable {
public:
    ConfigTable(const toml::table& table, const std::string& file, std::string prefix)
        : table_(&table), file_(&file), prefix_(std::move(prefix)) {}

    bool has(std::string_view key) const { return table_->contains(key); }

    // nullopt: the key is not there.
    std::optional<std::string> string(const char* key);
    std::optional<uint64_t> integer(const char* key, uint64_t least, uint64_t most);
    std::optional<uint64_t> size(const char* key); // "64K", or a number of bytes
    std::optional<bool> boolean(const char* key);
    std::optional<ConfigTable> table(const char* key);
    // Empty if it is not there.
    std::vector<std::string> strings(const char* key);
    std::vector<ConfigTable> tables(const char* key); // [[key]]

    // Throws if it is not there; `expected` is for the message.
    std::string required_string(const char* key, const char* expected);

    // All keys, for tables whose keys the operator chooses. `known` takes one as asked for.
    std::vector<std::string> keys() const;
    // A string, or an integer in decimal.
    std::string scalar(const std::string& key);

    // Throws at the first key that nothing above has asked for.
    void only_known() const;

    [[noreturn]] void fail(std::string_view key, const std::string& what) const;

private:
    const toml::node* find(std::string_view key);
    [[noreturn]] void wrong_type(std::string_view key, const char* expected) const;

    const toml::table* table_;
    const std::string* file_;
    std::string prefix_; // "disk[1]."
    std::vector<std::string> asked_;
};

class ConfigFile {
public:
    // Throws Error(usage) if it is not TOML.
    ConfigFile(std::string_view text, std::string path);
    ConfigTable root() const { return {table_, path_, ""}; }

private:
    std::string path_;
    toml::table table_;
};

} // namespace drover
