// SPDX-License-Identifier: GPL-2.0-or-later
#include "tunnel/tap.h"

#include "common/error.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

namespace drover::tunnel {

Tap open_tap() {
    Tap tap;
    tap.fd.reset(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!tap.fd) {
        throw_errno("/dev/net/tun");
    }
    ifreq request{};
    std::string("drt%d").copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (::ioctl(tap.fd.get(), TUNSETIFF, &request) != 0 ||
        ::ioctl(tap.fd.get(), TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) != 0) {
        throw_errno("a TAP device");
    }
    tap.name = request.ifr_name;
    return tap;
}

} // namespace drover::tunnel
