// SPDX-License-Identifier: GPL-2.0-or-later
// mode = "auto" and "stretched" of [network] (drover-vm(5)): whether the bridges of a VM's NICs
// here and there are one segment, and telling a segment where the VM is now. Blocking.
#pragma once

#include "migrator/config.h"
#include "tunnel/core/segment.h"
#include "tunnel/segment/probe.h"

#include <optional>
#include <string>
#include <vector>

namespace drover {

// Those that have addresses.
std::vector<NicSpec> addressed(const std::vector<NicSpec>& nics);

// At the source, from before the destination asks; a bridge each. Throws Error where it can't
// listen there.
class SegmentWatch {
public:
    explicit SegmentWatch(const std::vector<NicSpec>& nics);
    // Once the destination has asked: whether it was heard, by NIC.
    std::vector<bool> heard(const tunnel::Nonce& nonce);

private:
    std::vector<tunnel::NonceWatch> watches_;
};

// At the destination: whether the VM has answered, by NIC. Throws Error where it can't ask.
std::vector<bool> ask_for_vm(const std::vector<NicSpec>& nics, const tunnel::Nonce& nonce);

// Throws Error(refused) for one whose bridge is not here.
void require_bridges(const std::vector<NicSpec>& nics);

// By NIC: the source has heard the destination ask, the destination has heard the VM answer.
struct SegmentEvidence {
    std::vector<bool> heard, answered;
};
// What `auto` makes of it. Not stretched: a tunnel.
struct NetworkChoice {
    bool stretched = false;
    std::string why; // for people
};
// Throws Error(usage) where neither would be right for all of them.
NetworkChoice choose_network(const std::vector<NicSpec>& nics, const SegmentEvidence& evidence);

// Starts a process for each NIC that tells its bridge, for a minute. Throws Error(io).
void start_announcers(const std::string& vm, const std::vector<NicSpec>& nics);
// The VM leaves. Throws Error(io), Error(timeout) where one does not end.
void stop_announcers(const std::string& vm);

} // namespace drover
