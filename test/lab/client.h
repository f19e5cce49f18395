// SPDX-License-Identifier: GPL-2.0-or-later
// The commands of lab-client (client.cpp says what each does). Each returns the
// exit status and throws std::runtime_error where it can't do its work.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace lab {

int watch(const std::string& host, const std::string& report_path);
int tell(const std::string& host, const std::string& command);
int check(const std::string& path, uint64_t acknowledged);
int replay(const std::string& log_path, const std::string& image_path);
int qmp(const std::string& path, const std::string& command, const std::string& parameters);

[[noreturn]] inline void fail(const std::string& what) {
    throw std::runtime_error(what);
}

[[noreturn]] inline void fail_errno(const std::string& what) {
    fail(what + ": " + std::strerror(errno));
}

} // namespace lab
