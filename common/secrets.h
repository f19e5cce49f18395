// SPDX-License-Identifier: GPL-2.0-or-later
// Random keys and tokens, their hashes, and files that hold them. Every
// function may be called from any thread; all block.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <sys/types.h>

namespace drover {

// From the kernel's generator (getrandom). Throws Error(io).
std::string random_bytes(size_t count);
// `bytes` random bytes as 2 * bytes lower-case hexadecimal digits.
std::string random_hex(size_t bytes);
// A random (version 4) UUID: 8-4-4-4-12 lower-case hexadecimal digits.
std::string random_uuid();
bool is_uuid(std::string_view text);

std::string to_hex(std::string_view bytes);
// nullopt unless hex is an even number of hexadecimal digits.
std::optional<std::string> from_hex(std::string_view hex);

// SHA-256 of the bytes, as 64 lower-case hexadecimal digits. Throws Error(io) where GnuTLS can't.
std::string sha256_hex(std::string_view bytes);
// H(token), of a token in its hexadecimal form: SHA-256 of the bytes that it stands for.
// Empty, which equals no hash, where it is not hexadecimal.
std::string token_hash(std::string_view token_hex);
// Takes the same time wherever the two differ (their lengths are not secret).
bool equal_secret(std::string_view a, std::string_view b);

// Told after each step of what must survive a crash; a test's throws there.
using StepHook = std::function<void(std::string_view step)>;

// Replaces the file whole: after a crash at any point it holds the old content or the new
// one. Durable when it returns. `path`.tmp is used on the way: one writer of a path at a time.
// Throws Error(io); the old content stands then.
void write_file_durably(const std::string& path,
                        std::string_view content,
                        mode_t mode = 0600,
                        const StepHook& step = {});
// The whole file, nullopt if there is none. Throws Error(io), also beyond `limit` bytes.
std::optional<std::string> read_whole_file(const std::string& path, size_t limit = 1 << 20);

// The key file of GnuTLS and nbdkit (--tls-psk): a line `user:hexkey` each, mode 0600. It is
// read again for each handshake, so a change counts from the next connection on.
//
// add_psk makes the file where there is none, and replaces the user's key where there is one.
// Throws Error(usage) for a user outside [A-Za-z0-9._-] or a key that is not hexadecimal, Error(refused)
// for what is no key file, Error(io). Safe between processes: the folder is locked meanwhile.
void add_psk(const std::string& path, std::string_view user, std::string_view key_hex);
// Nothing to do if the user or the file is not there. The key is gone from the disk's
// directory tree, not from its free blocks: keep the file on a tmpfs (/run).
void remove_psk(const std::string& path, std::string_view user);
// Of all users whose names begin so.
void remove_psks(const std::string& path, std::string_view prefix);

} // namespace drover
