// SPDX-License-Identifier: GPL-2.0-or-later
// The records that the guest writes and the host looks for afterwards. Record N
// (from 1) lies at (N - 1) * size of the file; its whole content follows from N
// and the size, so that a stale, torn or misplaced one can't pass for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace lab {

// The guest's TCP ports.
inline constexpr uint16_t records_port = 7777;  // the number of each record that is on the disk
inline constexpr uint16_t echo_port = 7778;     // sends back what it gets
inline constexpr uint16_t commands_port = 7779; // a word a line, answered by a line

struct RecordHeader { // little-endian, as both sides are x86-64
    char magic[8];
    uint64_t number;
    uint64_t size;     // bytes, this header included
    uint64_t checksum; // FNV-1a over the record, this field being 0
};

inline constexpr size_t record_size_min = sizeof(RecordHeader);
inline constexpr size_t record_size_max = 1 << 20;

inline uint64_t fnv1a(const std::vector<char>& bytes) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char byte : bytes) {
        hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
    }
    return hash;
}

// Record `number` of `size` bytes.
inline std::vector<char> make_record(uint64_t number, size_t size) {
    std::vector<char> record(size);
    uint64_t state = number * 0x9e3779b97f4a7c15;
    for (size_t i = sizeof(RecordHeader); i < size; ++i) {
        state = state * 6364136223846793005 + 1442695040888963407;
        record[i] = static_cast<char>(state >> 56);
    }
    RecordHeader header{{'D', 'R', 'O', 'V', 'R', 'E', 'C', '1'}, number, size, 0};
    std::memcpy(record.data(), &header, sizeof header);
    header.checksum = fnv1a(record);
    std::memcpy(record.data(), &header, sizeof header);
    return record;
}

// The header of what may be a record; the magic tells.
inline bool read_header(const std::vector<char>& bytes, RecordHeader& header) {
    if (bytes.size() < sizeof header) {
        return false;
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    return std::memcmp(header.magic, "DROVREC1", sizeof header.magic) == 0;
}

} // namespace lab
