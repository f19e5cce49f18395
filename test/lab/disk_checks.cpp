// SPDX-License-Identifier: GPL-2.0-or-later
// Whether a disk holds what the guest promised.
#include "client.h"
#include "record.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

namespace lab {
namespace {

using nlohmann::json;

// False if the file ends before.
bool read_whole(std::ifstream& file, std::vector<char>& bytes) {
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return static_cast<size_t>(file.gcount()) == bytes.size();
}

} // namespace

int check(const std::string& path, uint64_t acknowledged) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes(sizeof(lab::RecordHeader));
    lab::RecordHeader header{};
    uint64_t found = 0;
    size_t size = 0;
    if (file && read_whole(file, bytes) && lab::read_header(bytes, header) &&
        header.size >= lab::record_size_min && header.size <= lab::record_size_max) {
        size = header.size;
        bytes.resize(size);
        file.seekg(0);
        while (read_whole(file, bytes) && bytes == lab::make_record(found + 1, size)) {
            ++found;
        }
    }
    const json result = {{"records", found}, {"acknowledged", acknowledged}, {"size", size}};
    std::printf("%s\n", result.dump().c_str());
    if (found < acknowledged) {
        std::fprintf(stderr,
                     "lab-client: %s: record %llu was acknowledged up to %llu, but %s\n",
                     path.c_str(),
                     static_cast<unsigned long long>(found + 1),
                     static_cast<unsigned long long>(acknowledged),
                     file ? "its content is wrong" : "the file ends before it");
        return 1;
    }
    return 0;
}

// The format of Linux's dm-log-writes, little-endian: a superblock {magic, version, entries,
// sector size} in the first sector; each entry {sector, sectors, flags, data length} in a sector of
// its own, followed by the data, filled up to whole sectors. QEMU brings the number of entries up
// to date at a flush only, so the end of the file tells.
int replay(const std::string& log_path, const std::string& image_path) {
    constexpr uint64_t log_magic = 0x6a736677736872, flag_discard = 4;
    std::ifstream log(log_path, std::ios::binary);
    std::vector<char> head(512);
    const auto number = [&head](size_t offset, size_t size) {
        uint64_t value = 0;
        std::memcpy(&value, head.data() + offset, size);
        return value;
    };
    if (!log || !read_whole(log, head) || number(0, 8) != log_magic || number(8, 8) != 1) {
        fail(log_path + " is not a log of writes");
    }
    const uint64_t sector_size = number(24, 4);
    if (sector_size < head.size() || sector_size > 1 << 20) {
        fail(log_path + ": the sector size is " + std::to_string(sector_size));
    }
    const int image = ::open(image_path.c_str(), O_WRONLY | O_CLOEXEC);
    if (image < 0) {
        fail_errno(image_path);
    }
    const auto log_size = static_cast<uint64_t>(std::filesystem::file_size(log_path));
    uint64_t writes = 0, total = 0;
    for (uint64_t position = sector_size; position < log_size;) {
        log.seekg(static_cast<std::streamoff>(position));
        if (!read_whole(log, head)) {
            fail(log_path + " ends inside an entry");
        }
        const uint64_t offset = number(0, 8) * sector_size, length = number(8, 8) * sector_size;
        position += sector_size;
        std::vector<char> data(length); // a discard has none: it reads as zeroes
        if ((number(16, 8) & flag_discard) == 0) {
            log.seekg(static_cast<std::streamoff>(position));
            if (!read_whole(log, data)) {
                fail(log_path + " ends inside an entry");
            }
            position += length;
        }
        if (::pwrite(image, data.data(), length, static_cast<off_t>(offset)) !=
            static_cast<ssize_t>(length)) {
            fail_errno(image_path);
        }
        writes += length != 0 ? 1 : 0;
        total += length;
    }
    if (::close(image) < 0) {
        fail_errno(image_path);
    }
    const json result = {{"writes", writes}, {"bytes", total}};
    std::printf("%s\n", result.dump().c_str());
    return 0;
}

} // namespace lab
