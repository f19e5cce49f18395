// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/confinement.h"

#include "nbd-proxy/image_marker.h"

#include <charconv>
#include <filesystem>
#include <string_view>

namespace drover {
namespace {

std::string folder_of(const std::filesystem::path& file) {
    return file.parent_path().string();
}

std::string unescaped(std::string_view text) {
    std::string plain;
    for (size_t i = 0; i < text.size(); ++i) {
        unsigned char code = 0;
        const char* const digits = text.data() + i + 1;
        if (text[i] == '%' && i + 2 < text.size() &&
            std::from_chars(digits, digits + 2, code, 16).ptr == digits + 2) {
            plain += static_cast<char>(code);
            i += 2;
        } else {
            plain += text[i];
        }
    }
    return plain;
}

// What libnbd reads at each connection.
void add_keys(std::string_view uri, std::vector<std::string>& files) {
    uri = uri.substr(0, uri.find('#'));
    size_t at = uri.find('?');
    while (at != std::string_view::npos) {
        const size_t next = uri.find('&', at + 1);
        const std::string_view part = uri.substr(at + 1, next - at - 1);
        for (const std::string_view name : {"tls-psk-file=", "tls-certificates="}) {
            if (part.starts_with(name)) {
                files.push_back(unescaped(part.substr(name.size())));
            }
        }
        at = next;
    }
}

// Libraries, name services and their settings, random numbers, what the kernel tells of itself.
std::vector<std::string> common_files() {
    std::vector<std::string> files{"/usr",
                                   "/lib",
                                   "/lib64",
                                   "/etc",
                                   "/proc/self",
                                   "/proc/sys",
                                   "/sys/devices/system/cpu",
                                   "/dev/urandom"};
    std::error_code error;
    const auto resolver = std::filesystem::canonical("/etc/resolv.conf", error);
    if (!error) {
        files.push_back(folder_of(resolver)); // where it is written anew
    }
    return files;
}

} // namespace

FileAccess
files_of_disk(const EngineOptions& options, const std::string& image, const std::string& control) {
    FileAccess files{.read = common_files(), .write = {"/dev/null"}, .names = {}};
    add_keys(options.uri, files.read);
    if (!control.empty()) {
        files.names.push_back(folder_of(control));
    }
    if (!image.empty()) {
        files.write.push_back(image);
    }
    if (options.state_dir.empty()) {
        return files;
    }
    files.write.push_back(options.state_dir);
    files.names.push_back(options.state_dir);
    if (std::filesystem::is_regular_file(image)) {
        files.names.push_back(folder_of(image)); // it is set aside, and comes back
        if (!has_attributes(image)) {
            files.write.push_back(folder_of(image)); // the marker
        }
    }
    return files;
}

} // namespace drover
