// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/secrets.h"

#include "common/error.h"
#include "common/unique_fd.h"

#include <array>

#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr std::string_view hex_digits = "0123456789abcdef";

int hex_value(char digit) {
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    if (digit >= 'a' && digit <= 'f') {
        return digit - 'a' + 10;
    }
    if (digit >= 'A' && digit <= 'F') {
        return digit - 'A' + 10;
    }
    return -1;
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) {
        return ".";
    }
    return slash == 0 ? "/" : path.substr(0, slash);
}

void write_all(int fd, std::string_view content, const std::string& path) {
    while (!content.empty()) {
        const ssize_t written = ::write(fd, content.data(), content.size());
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            throw_errno(fmt::format("writing {}", path));
        }
        content.remove_prefix(static_cast<size_t>(written));
    }
}

UniqueFd open_folder(const std::string& path) {
    const std::string folder = folder_of(path);
    UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) {
        throw_errno(folder);
    }
    return fd;
}

// Holds the folder of a path, so that two processes do not both read, change and replace it.
UniqueFd lock_folder(const std::string& path) {
    UniqueFd fd = open_folder(path);
    while (::flock(fd.get(), LOCK_EX) != 0) {
        if (errno != EINTR) {
            throw_errno(fmt::format("locking {}", folder_of(path)));
        }
    }
    return fd;
}

void check_psk_user(std::string_view user) {
    const auto allowed = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '.' || c == '_' || c == '-';
    };
    bool good = !user.empty();
    for (const char c : user) {
        good = good && allowed(c);
    }
    if (!good) {
        throw Error(
            ErrorKind::usage,
            fmt::format("'{}' can't name a key: letters, digits, '.', '_' and '-' can", user));
    }
}

// The lines of the key file but those of a user that is not to have one any more. GnuTLS reads it,
// so its format is not ours, and has no checksum.
template <typename IsGone>
std::string lines_without(const std::string& path, std::string_view content, IsGone is_gone) {
    std::string kept;
    while (!content.empty()) {
        const size_t newline = content.find('\n');
        const std::string_view line = content.substr(0, newline);
        content.remove_prefix(newline == std::string_view::npos ? content.size() : newline + 1);
        const size_t colon = line.find(':');
        if (colon == 0 || colon == std::string_view::npos || colon + 1 == line.size() ||
            !from_hex(line.substr(colon + 1))) {
            throw Error(ErrorKind::refused,
                        fmt::format("{}: damaged, or not a key file of drover. Nothing was changed. "
                                    "It has the keys of migrations under way and of disks that "
                                    "forward: move it away, and start these again",
                                    path));
        }
        if (!is_gone(line.substr(0, colon))) {
            kept.append(line).append("\n");
        }
    }
    return kept;
}

template <typename IsGone>
void remove_keys(const std::string& path, IsGone is_gone) {
    const UniqueFd lock = lock_folder(path);
    const auto content = read_whole_file(path);
    if (!content) {
        return;
    }
    const std::string kept = lines_without(path, *content, is_gone);
    if (kept != *content) {
        write_file_durably(path, kept);
    }
}

} // namespace

std::string random_bytes(size_t count) {
    std::string bytes(count, '\0');
    size_t filled = 0;
    while (filled < count) {
        const ssize_t got = ::getrandom(bytes.data() + filled, count - filled, 0);
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            throw_errno("getrandom");
        }
        filled += static_cast<size_t>(got);
    }
    return bytes;
}

std::string random_hex(size_t bytes) {
    return to_hex(random_bytes(bytes));
}

std::string random_uuid() {
    std::string bytes = random_bytes(16);
    bytes[6] = static_cast<char>((bytes[6] & 0x0f) | 0x40); // version 4
    bytes[8] = static_cast<char>((bytes[8] & 0x3f) | 0x80); // RFC 4122's variant
    const std::string hex = to_hex(bytes);
    const std::string_view digits = hex;
    return fmt::format("{}-{}-{}-{}-{}",
                       digits.substr(0, 8),
                       digits.substr(8, 4),
                       digits.substr(12, 4),
                       digits.substr(16, 4),
                       digits.substr(20));
}

bool is_uuid(std::string_view text) {
    if (text.size() != 36) {
        return false;
    }
    for (size_t i = 0; i < text.size(); ++i) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : hex_digits.find(text[i]) == std::string_view::npos) {
            return false;
        }
    }
    return true;
}

std::string to_hex(std::string_view bytes) {
    std::string hex;
    hex.reserve(2 * bytes.size());
    for (const char byte : bytes) {
        const auto value = static_cast<unsigned char>(byte);
        hex.push_back(hex_digits[value >> 4]);
        hex.push_back(hex_digits[value & 15]);
    }
    return hex;
}

std::optional<std::string> from_hex(std::string_view hex) {
    if (hex.size() % 2 != 0) {
        return std::nullopt;
    }
    std::string bytes;
    bytes.reserve(hex.size() / 2);
    for (size_t i = 0; i < hex.size(); i += 2) {
        const int high = hex_value(hex[i]);
        const int low = hex_value(hex[i + 1]);
        if (high < 0 || low < 0) {
            return std::nullopt;
        }
        bytes.push_back(static_cast<char>(high << 4 | low));
    }
    return bytes;
}

std::string sha256_hex(std::string_view bytes) {
    std::array<char, 32> digest{};
    const int error =
        gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes.data(), bytes.size(), digest.data());
    if (error != 0) {
        throw Error(ErrorKind::io, fmt::format("SHA-256: {}", gnutls_strerror(error)));
    }
    return to_hex({digest.data(), digest.size()});
}

std::string token_hash(std::string_view token_hex) {
    const auto bytes = from_hex(token_hex);
    return bytes && !bytes->empty() ? sha256_hex(*bytes) : std::string();
}

bool equal_secret(std::string_view a, std::string_view b) {
    return a.size() == b.size() && gnutls_memcmp(a.data(), b.data(), a.size()) == 0;
}

void write_file_durably(const std::string& path,
                        std::string_view content,
                        mode_t mode,
                        const StepHook& step) {
    const auto done = [&](std::string_view what) {
        if (step) {
            step(what);
        }
    };
    const std::string temporary = path + ".tmp";
    UniqueFd fd(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode));
    if (!fd) {
        throw_errno(fmt::format("creating {}", temporary));
    }
    try {
        // What an earlier crash left behind may have had another mode.
        if (::fchmod(fd.get(), mode) != 0) {
            throw_errno(fmt::format("setting the mode of {}", temporary));
        }
        write_all(fd.get(), content, temporary);
        if (::fsync(fd.get()) != 0) {
            throw_errno(fmt::format("fsync of {}", temporary));
        }
        if (::close(fd.release()) != 0) {
            throw_errno(fmt::format("closing {}", temporary));
        }
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    done("temporary written");
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
        const int error = errno;
        ::unlink(temporary.c_str());
        throw_errno(fmt::format("replacing {}", path), error);
    }
    done("renamed");
    const UniqueFd folder = open_folder(path);
    if (::fsync(folder.get()) != 0) {
        throw_errno(fmt::format("fsync of {}", folder_of(path)));
    }
    done("folder synced");
}

std::optional<std::string> read_whole_file(const std::string& path, size_t limit) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) {
        if (errno == ENOENT) {
            return std::nullopt;
        }
        throw_errno(path);
    }
    std::string content;
    std::array<char, 16384> buffer; // NOLINT: filled by read
    for (;;) {
        const ssize_t got = ::read(fd.get(), buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            throw_errno(fmt::format("reading {}", path));
        }
        if (got == 0) {
            return content;
        }
        content.append(buffer.data(), static_cast<size_t>(got));
        if (content.size() > limit) {
            throw Error(
                ErrorKind::io,
                fmt::format("{} is longer than {} bytes: not a file of drover", path, limit),
                EFBIG);
        }
    }
}

void add_psk(const std::string& path, std::string_view user, std::string_view key_hex) {
    check_psk_user(user);
    if (key_hex.empty() || !from_hex(key_hex)) {
        throw Error(ErrorKind::usage, fmt::format("the key of '{}' is not hexadecimal", user));
    }
    const UniqueFd lock = lock_folder(path);
    std::string content =
        lines_without(path, read_whole_file(path).value_or(""), [&](std::string_view other) {
            return other == user;
        });
    content.append(user).append(":").append(key_hex).append("\n");
    write_file_durably(path, content);
}

void remove_psk(const std::string& path, std::string_view user) {
    check_psk_user(user);
    remove_keys(path, [&](std::string_view other) { return other == user; });
}

void remove_psks(const std::string& path, std::string_view prefix) {
    check_psk_user(prefix);
    remove_keys(path, [&](std::string_view other) { return other.starts_with(prefix); });
}

} // namespace drover
