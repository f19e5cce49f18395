// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/image_marker.h"

#include "common/error.h"
#include "common/secrets.h"

#include <array>
#include <charconv>
#include <vector>

#include <sys/xattr.h>

namespace drover {
namespace {

constexpr const char* attribute = "user.drover";
constexpr std::string_view magic = "drover-mark";
constexpr std::string_view format = "2"; // 1 had no checksum
constexpr std::string_view roles = "orxfwi";

std::string sidecar_of(const std::string& image) {
    return image + ".drover-mark";
}

[[noreturn]] void refuse_marker(const std::string& where, const std::string& why) {
    throw Error(ErrorKind::refused,
                fmt::format("{}: {}; nothing was changed. If no other copy of the disk is in use, "
                            "remove the marker (docs/state-files.md)",
                            where,
                            why));
}

std::vector<std::string_view> words_of(std::string_view text) {
    std::vector<std::string_view> words;
    while (!text.empty()) {
        const size_t end = text.find_first_of(" \n");
        words.push_back(text.substr(0, end));
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    return words;
}

std::string checksum_of(std::string_view text) {
    constexpr size_t digits = 16;
    return sha256_hex(text).substr(0, digits);
}

bool read_number(std::string_view text, uint64_t& number) {
    const char* const last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, number);
    return error == std::errc{} && end == last;
}

} // namespace

ImageMarker parse_marker(std::string_view text, const std::string& where) {
    const auto words = words_of(text);
    if (words.size() < 2 || words[0] != magic) {
        refuse_marker(where, "not a marker of drover");
    }
    if (words[1] != format) {
        refuse_marker(where,
                      words[1] == "1" ? "a marker of format 1, which an older drover wrote"
                                      : fmt::format("a marker of format {}, this drover knows {}",
                                                    words[1],
                                                    format));
    }
    ImageMarker marker;
    const size_t last_word = text.rfind(' ');
    if (words.size() != 7 || words[6] != checksum_of(text.substr(0, last_word)) ||
        !is_uuid(words[2]) || !read_number(words[3], marker.generation) ||
        words[4].size() != 1 || roles.find(words[4][0]) == std::string_view::npos ||
        !read_number(words[5], marker.version)) {
        refuse_marker(where, "a damaged marker");
    }
    marker.uuid = words[2];
    marker.role = words[4][0];
    return marker;
}

std::string marker_text(const ImageMarker& marker) {
    const std::string text = fmt::format("{} {} {} {} {} {}",
                                         magic,
                                         format,
                                         marker.uuid,
                                         marker.generation,
                                         marker.role,
                                         marker.version);
    return text + " " + checksum_of(text);
}

std::optional<ImageMarker> read_marker(const std::string& file, const std::string& image) {
    std::array<char, 256> value{};
    const ssize_t length = ::getxattr(file.c_str(), attribute, value.data(), value.size());
    if (length >= 0) {
        return parse_marker({value.data(), size_t(length)},
                            fmt::format("{} (attribute {})", file, attribute));
    }
    if (errno != ENODATA && errno != ENOTSUP) {
        throw_errno(fmt::format("reading the attribute {} of {}", attribute, file));
    }
    std::string sidecar = sidecar_of(image);
    auto text = read_whole_file(sidecar);
    // The marker of an image that was set aside has stayed where the image was.
    if (const size_t aside = image.rfind(fenced_suffix); !text && aside != std::string::npos) {
        sidecar = sidecar_of(image.substr(0, aside));
        text = read_whole_file(sidecar);
    }
    return text ? std::optional(parse_marker(*text, sidecar)) : std::nullopt;
}

void write_marker(const std::string& file, const std::string& image, const ImageMarker& marker) {
    const std::string text = marker_text(marker);
    if (::setxattr(file.c_str(), attribute, text.data(), text.size(), 0) == 0) {
        return;
    }
    if (errno != ENOTSUP) {
        throw_errno(fmt::format("setting the attribute {} of {}", attribute, file));
    }
    write_file_durably(sidecar_of(image), text + "\n");
}

bool has_attributes(const std::string& file) {
    return ::getxattr(file.c_str(), attribute, nullptr, 0) >= 0 || errno != ENOTSUP;
}

void remove_marker(const std::string& image) {
    const std::string sidecar = sidecar_of(image);
    if (::unlink(sidecar.c_str()) != 0 && errno != ENOENT) {
        throw_errno(fmt::format("removing {}", sidecar));
    }
}

} // namespace drover
