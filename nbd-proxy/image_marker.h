// SPDX-License-Identifier: GPL-2.0-or-later
// The marker that an image carries, so that a copy of it, or an older record
// beside it, is noticed: the extended attribute user.drover, or, where the file
// system has none, the file PATH.drover-mark.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace drover {

// What the path of an image that is set aside has behind that of its place, and then the
// generation.
inline constexpr std::string_view fenced_suffix = ".fenced-";

struct ImageMarker {
    std::string uuid;
    uint64_t generation = 0;
    char role = 'o'; // o owner, r replica, x refused replica, f fenced, w forwarding, i incomplete
    uint64_t version = 0; // of the record that it was written from
    bool operator==(const ImageMarker&) const = default;
};

std::string marker_text(const ImageMarker& marker);
// Throws Error(refused) for what is damaged, foreign or of another format; `where` is for the text.
ImageMarker parse_marker(std::string_view text, const std::string& where);

// `file` is where the image is now, `image` its path when it is in its place (the sidecar file's
// name is made of that). nullopt: not marked. Throws Error(io), or Error(refused) for a marker that
// is damaged or of a newer format.
std::optional<ImageMarker> read_marker(const std::string& file, const std::string& image);

// Not made durable as an attribute: after a power cut an older marker may be found, which is
// allowed. Throws Error(io).
void write_marker(const std::string& file, const std::string& image, const ImageMarker& marker);

// Whether its marker is an attribute, rather than a file beside it.
bool has_attributes(const std::string& file);

// Of an image that is no more; an attribute has gone with it. Throws Error(io).
void remove_marker(const std::string& image);

} // namespace drover
