// SPDX-License-Identifier: GPL-2.0-or-later
// The process that changes the host's network: it keeps CAP_NET_ADMIN, takes commands without
// parameters, and never sees a packet. What it puts up is in the state file first.
#pragma once

#include "common/unique_fd.h"
#include "tunnel/core/address.h"
#include "tunnel/core/put_up.h"

#include <sys/types.h>

namespace drover::tunnel {

struct TunnelFiles {
    std::string folder;    // RUN/NAME
    std::string state;     // tunnel.state in it
    std::string socket;    // tunnel.ctl in it
    std::string announcer; // announce.ctl in it: there may be one without a tunnel

    // $DROVER_RUN (default /run/drover). Throws Error(usage) for a name that is no plain file name.
    static TunnelFiles of(const std::string& tunnel);
};

struct HelperOptions {
    TunnelFiles files;
    PutUp put_up;
    std::string device; // the TAP device
    Mac mac;            // of the VM
    std::string rules;  // of nft; "" at home
};

// One thread.
class Helper {
public:
    // Forks. To be called before there are threads, and before this process drops its rights. The
    // child keeps none of its other descriptors, but 2.
    explicit Helper(const HelperOptions& options);

    // Each waits until it is done, for milliseconds, and throws Error(io) with the reason if it
    // can't be, Error(peer) if the process has ended.
    void set_up();
    void switch_over(); // home: the VM's frames come to the device; recorded, also at the away end
    void switch_back(); // the reverse
    void take_down();   // everything, the state file last; then the process ends

    int fd() const { return socket_.get(); } // readable: the process has ended

private:
    void command(char which, const char* what);
    UniqueFd socket_;
};

// What is left of a tunnel whose processes have died. False if there was nothing. Throws
// Error(state) while it runs, Error(refused) for a state file that can't be read, Error(io).
bool clean_up(const TunnelFiles& files);

} // namespace drover::tunnel
