// SPDX-License-Identifier: GPL-2.0-or-later
// The agent's half of `drover verify`: lets a coordinator read the hashes of disks that are
// served here. run_verify (coordinator.h) is the other half.
#pragma once

#include "common/json_rpc.h"
#include "migrator/config.h"

#include <string>
#include <utility>
#include <vector>

namespace drover {

class HashAccess {
public:
    explicit HashAccess(const SiteConfig& site) : site_(site) {}
    ~HashAccess() { close(); }
    HashAccess(const HashAccess&) = delete;
    HashAccess& operator=(const HashAccess&) = delete;

    // `hashes` of docs/control.md: a key that counts until close(). Throws Error(state) for a disk
    // that is not served here, or that is coming in.
    rpc::Json open(const rpc::Json& params);
    void close();

private:
    void refuse_incoming(const std::string& disk);

    const SiteConfig& site_;
    std::string vm_, user_;
    std::vector<std::string> disks_; // those that the key was given to
};

} // namespace drover
