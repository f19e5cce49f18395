// SPDX-License-Identifier: GPL-2.0-or-later
// A process at the source, apart from the coordinator: in a session of its own, so that neither a
// hang-up nor whatever kills that one reaches it. When the coordinator's socket closes and the
// migration is not over, it recovers it (source_recovery.h), and goes on trying as long as the
// other side has to be asked and does not answer.
#pragma once

#include "common/unique_fd.h"
#include "migrator/async.h"
#include "migrator/config.h"

#include <memory>

#include <asio/posix/stream_descriptor.hpp>

namespace drover {

// The coordinator's end. A guardian that dies is replaced.
class GuardianLink {
public:
    // Throws Error(io) if it can't be started.
    GuardianLink(asio::any_io_executor executor, const VmFile& vm);
    ~GuardianLink();
    GuardianLink(const GuardianLink&) = delete;
    GuardianLink& operator=(const GuardianLink&) = delete;

private:
    struct Connection;
    void start();
    void watch();

    asio::any_io_executor executor_;
    const std::string vm_name_, vm_path_;
    std::shared_ptr<Connection> connection_;
    unsigned starts_ = 0;
};

// `drover guardian VM`, with the socket as its descriptor 3; not for people. The exit status.
int run_guardian(const SiteConfig& site, const std::string& vm_path);

} // namespace drover
