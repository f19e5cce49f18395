// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/host_facts.h"

#include "common/error.h"
#include "common/unique_fd.h"
#include "migrator/paths.h"

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace drover {
namespace {

namespace fs = std::filesystem;

std::string text_of(const char* file) {
    try {
        return read_file(file);
    } catch (const Error&) {
        return "";
    }
}

bool is_executable(const std::string& path) {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
           ::access(path.c_str(), X_OK) == 0;
}

// What is behind "KEY<blanks>: " of a line, if it is that key's.
std::optional<std::string_view> value_of(std::string_view line, std::string_view key) {
    if (!line.starts_with(key)) {
        return std::nullopt;
    }
    const size_t colon = line.find_first_not_of(" \t", key.size());
    if (colon == std::string_view::npos || line[colon] != ':') {
        return std::nullopt;
    }
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string_view::npos ? "" : line.substr(value);
}

} // namespace

std::string host_name() {
    char name[256] = "";
    ::gethostname(name, sizeof name - 1);
    return name;
}

bool has_program(const std::string& word) {
    if (word.find('/') != std::string::npos) {
        return is_executable(word);
    }
    const char* const path = std::getenv("PATH"); // NOLINT(concurrency-mt-unsafe): never changed
    std::istringstream folders(path == nullptr ? "/usr/bin:/bin" : path);
    for (std::string folder; std::getline(folders, folder, ':');) {
        if (is_executable((folder.empty() ? "." : folder) + "/" + word)) {
            return true;
        }
    }
    return false;
}

std::optional<uint64_t> parse_available_memory(std::string_view meminfo) {
    std::istringstream lines{std::string(meminfo)};
    for (std::string line; std::getline(lines, line);) {
        const auto value = value_of(line, "MemAvailable");
        uint64_t kib = 0;
        if (value &&
            std::from_chars(value->data(), value->data() + value->size(), kib).ec == std::errc()) {
            return kib * 1024;
        }
    }
    return std::nullopt;
}

std::optional<uint64_t> available_memory() {
    return parse_available_memory(text_of("/proc/meminfo"));
}

Cpu parse_cpuinfo(std::string_view text) {
    Cpu cpu;
    std::istringstream lines{std::string(text)};
    for (std::string line; std::getline(lines, line) && !line.empty();) {
        if (const auto model = value_of(line, "model name")) {
            cpu.model = *model;
        } else if (const auto flags = value_of(line, "flags")) {
            std::istringstream words{std::string(*flags)};
            for (std::string word; words >> word;) {
                cpu.flags.insert(word);
            }
        }
    }
    return cpu;
}

Cpu this_cpu() {
    return parse_cpuinfo(text_of("/proc/cpuinfo"));
}

bool has_device(const char* path) {
    struct stat info {};
    return ::stat(path, &info) == 0 && S_ISCHR(info.st_mode) && ::access(path, R_OK | W_OK) == 0;
}

bool is_bridge(const std::string& interface) {
    return ::access(("/sys/class/net/" + interface + "/bridge").c_str(), F_OK) == 0;
}

std::optional<Space> space_for(const std::string& file) {
    fs::path folder = fs::path(file).parent_path();
    std::error_code none;
    while (!fs::is_directory(folder, none) && folder.has_relative_path()) {
        if (fs::exists(folder, none)) {
            return std::nullopt; // what is in the way is no folder
        }
        folder = folder.parent_path();
    }
    struct stat info {};
    struct statvfs space {};
    if (::stat(folder.c_str(), &info) != 0 || ::statvfs(folder.c_str(), &space) != 0) {
        return std::nullopt;
    }
    return Space{folder,
                 info.st_dev,
                 static_cast<uint64_t>(space.f_bavail) * space.f_frsize,
                 ::access(folder.c_str(), W_OK | X_OK) == 0};
}

uint64_t allocated_bytes(const std::string& file) {
    constexpr uint64_t unit = 512; // of st_blocks
    struct stat info {};
    return ::stat(file.c_str(), &info) == 0 && S_ISREG(info.st_mode)
               ? static_cast<uint64_t>(info.st_blocks) * unit
               : 0;
}

std::optional<uint64_t> device_size(const std::string& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || !S_ISBLK(info.st_mode)) {
        return std::nullopt;
    }
    const UniqueFd device(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    uint64_t bytes = 0;
    if (!device || ::ioctl(device.get(), BLKGETSIZE64, &bytes) != 0) {
        return std::nullopt;
    }
    return bytes;
}

} // namespace drover
