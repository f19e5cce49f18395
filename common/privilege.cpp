// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/privilege.h"

#include "common/error.h"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace drover {

bool may_control(int socket) {
    ucred peer{};
    socklen_t length = sizeof peer;
    return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == ::geteuid());
}

void keep_memory_private() {
    if (::prctl(PR_SET_DUMPABLE, 0) != 0) {
        throw_errno("PR_SET_DUMPABLE");
    }
}

} // namespace drover
