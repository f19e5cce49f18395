// SPDX-License-Identifier: GPL-2.0-or-later
#include <stdexcept>

// toml++ 3.3 takes some malformed lines ("[[+x]]") for a mistake of its own: an assertion, and with
// NDEBUG undefined behaviour. Here they are errors in the file.
#define TOML_ASSERT(expr)                                                                          \
    do {                                                                                           \
        if (!(expr)) {                                                                             \
            throw std::logic_error(#expr);                                                         \
        }                                                                                          \
    } while (false)
#undef NDEBUG
#define TOML_IMPLEMENTATION
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wterminate" // the same macro in its noexcept functions
#endif
#include "common/units.h"
#include "migrator/config_reader.h"

#include <algorithm>

#include <fmt/format.h>

namespace drover {
namespace {

const char* type_name(const toml::node& node) {
    switch (node.type()) {
    case toml::node_type::table:
        return "a table";
    case toml::node_type::array:
        return "an array";
    case toml::node_type::string:
        return "a string";
    case toml::node_type::integer:
        return "a number";
    case toml::node_type::floating_point:
        return "a number with a fraction";
    case toml::node_type::boolean:
        return "true or false";
    default:
        return "a date or time";
    }
}

std::string joined(std::vector<std::string> words) {
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    return fmt::format("{}", fmt::join(words, ", "));
}

// The line of the first character that is not ASCII and in no comment nor string of one line, 0 if
// there is none. toml++ 3.3 has undefined behaviour there: its is_non_ascii_horizontal_whitespace
// takes most of those characters to be impossible.
size_t line_of_stray_character(std::string_view text) {
    size_t line = 1;
    bool in_comment = false, in_lines = false;
    char quote = '\0'; // of the string that this is in
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '\n') {
            ++line;
            in_comment = false;
            quote = in_lines ? quote : '\0';
        } else if (in_comment) {
            continue;
        } else if (static_cast<signed char>(c) < 0) {
            if (quote == '\0' || in_lines) {
                return line;
            }
        } else if (c == '\\' && quote == '"') {
            i += text.substr(i + 1, 1) != "\n" ? 1 : 0;
        } else if (quote == '\0' && c == '#') {
            in_comment = true;
        } else if (quote == '\0' ? c == '"' || c == '\'' : c == quote) {
            const bool three = text.substr(i, 3) == std::string(3, c);
            if (quote == '\0' || three || !in_lines) {
                quote = quote == '\0' ? c : '\0';
                i += three && (quote != '\0' || in_lines) ? 2 : 0;
                in_lines = three && quote != '\0';
            }
        }
    }
    return 0;
}

} // namespace

ConfigFile::ConfigFile(std::string_view text, std::string path) : path_(std::move(path)) {
    if (const size_t line = line_of_stray_character(text)) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}:{}: not TOML: a character that may only be in a comment, or in "
                                "a string of one line",
                                path_,
                                line));
    }
    // After an error it may look at what would have been a string: it gets that text without
    // such characters.
    std::string ascii(text);
    std::replace_if(
        ascii.begin(), ascii.end(), [](char c) { return static_cast<signed char>(c) < 0; }, '?');
    try {
        table_ = toml::parse(ascii, path_);
        if (ascii != text) {
            table_ = toml::parse(text, path_);
        }
    } catch (const toml::parse_error& error) {
        throw Error(
            ErrorKind::usage,
            fmt::format(
                "{}:{}: not TOML: {}", path_, error.source().begin.line, error.description()));
    } catch (const std::logic_error&) {
        throw Error(ErrorKind::usage, fmt::format("{}: not TOML: a malformed line", path_));
    }
}

const toml::node* ConfigTable::find(std::string_view key) {
    asked_.emplace_back(key);
    return table_->get(key);
}

void ConfigTable::fail(std::string_view key, const std::string& what) const {
    const toml::node* node = table_->get(key);
    const auto line = (node != nullptr ? node->source() : table_->source()).begin.line;
    // A root table, or one that only its parts made, has no line.
    throw Error(
        ErrorKind::usage,
        fmt::format("{}:{}: '{}{}': {}", *file_, std::max<size_t>(line, 1), prefix_, key, what));
}

void ConfigTable::wrong_type(std::string_view key, const char* expected) const {
    fail(key, fmt::format("{} is expected, not {}", expected, type_name(*table_->get(key))));
}

std::optional<std::string> ConfigTable::string(const char* key) {
    const toml::node* node = find(key);
    if (node == nullptr) {
        return std::nullopt;
    }
    const auto value = node->value_exact<std::string>();
    if (!value) {
        wrong_type(key, "a string");
    }
    if (std::any_of(
            value->begin(), value->end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
        fail(key, "text without control characters is expected");
    }
    return value;
}

std::string ConfigTable::required_string(const char* key, const char* expected) {
    const auto value = string(key);
    if (!value) {
        fail(key, fmt::format("is missing: {} is expected", expected));
    }
    return *value;
}

std::optional<uint64_t> ConfigTable::integer(const char* key, uint64_t least, uint64_t most) {
    const toml::node* node = find(key);
    if (node == nullptr) {
        return std::nullopt;
    }
    const auto value = node->value_exact<int64_t>();
    if (!value) {
        wrong_type(key, "a number");
    }
    if (*value < 0 || static_cast<uint64_t>(*value) < least ||
        static_cast<uint64_t>(*value) > most) {
        fail(key, fmt::format("a number from {} to {} is expected, not {}", least, most, *value));
    }
    return static_cast<uint64_t>(*value);
}

std::optional<uint64_t> ConfigTable::size(const char* key) {
    const toml::node* node = find(key);
    if (node == nullptr) {
        return std::nullopt;
    }
    if (const auto bytes = node->value_exact<int64_t>(); bytes && *bytes >= 0) {
        return static_cast<uint64_t>(*bytes);
    }
    const auto text = node->value_exact<std::string>();
    const auto bytes = text ? parse_size(*text) : std::nullopt;
    if (!bytes) {
        fail(key, "a size is expected: a number of bytes, or text such as \"512M\" or \"2T\"");
    }
    return bytes;
}

std::optional<bool> ConfigTable::boolean(const char* key) {
    const toml::node* node = find(key);
    if (node == nullptr) {
        return std::nullopt;
    }
    const auto value = node->value_exact<bool>();
    if (!value) {
        wrong_type(key, "true or false");
    }
    return value;
}

std::optional<ConfigTable> ConfigTable::table(const char* key) {
    const toml::node* node = find(key);
    if (node == nullptr) {
        return std::nullopt;
    }
    if (!node->is_table()) {
        wrong_type(key, "a table");
    }
    return ConfigTable(*node->as_table(), *file_, fmt::format("{}{}.", prefix_, key));
}

std::vector<std::string> ConfigTable::strings(const char* key) {
    const toml::node* node = find(key);
    std::vector<std::string> values;
    if (node == nullptr) {
        return values;
    }
    if (!node->is_array()) {
        wrong_type(key, "an array of strings");
    }
    for (const toml::node& element : *node->as_array()) {
        const auto value = element.value_exact<std::string>();
        if (!value) {
            fail(key,
                 fmt::format("an array of strings is expected, element {} is {}",
                             values.size(),
                             type_name(element)));
        }
        if (value->find('\0') != std::string::npos) {
            fail(key, "text without null characters is expected");
        }
        values.push_back(*value);
    }
    return values;
}

std::vector<ConfigTable> ConfigTable::tables(const char* key) {
    const toml::node* node = find(key);
    std::vector<ConfigTable> found;
    if (node == nullptr) {
        return found;
    }
    const auto expected =
        fmt::format("one or more tables are expected, each under its own [[{}{}]]", prefix_, key);
    if (!node->is_array()) {
        fail(key, expected);
    }
    for (const toml::node& element : *node->as_array()) {
        if (!element.is_table()) {
            fail(key, expected);
        }
        found.emplace_back(
            *element.as_table(), *file_, fmt::format("{}{}[{}].", prefix_, key, found.size()));
    }
    return found;
}

std::vector<std::string> ConfigTable::keys() const {
    std::vector<std::string> names;
    for (const auto& [key, value] : *table_) {
        names.emplace_back(key.str());
    }
    return names;
}

std::string ConfigTable::scalar(const std::string& key) {
    const toml::node* node = find(key);
    if (const auto number = node->value_exact<int64_t>()) {
        return std::to_string(*number);
    }
    const auto text = node->value_exact<std::string>();
    if (!text) {
        wrong_type(key, "a string or a number");
    }
    return *text;
}

void ConfigTable::only_known() const {
    for (const std::string& key : keys()) {
        if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
            fail(key, fmt::format("unknown key; known here: {}", joined(asked_)));
        }
    }
}

} // namespace drover
