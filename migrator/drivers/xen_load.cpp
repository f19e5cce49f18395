// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "migrator/drivers/xen_host.h"
#include "migrator/paths.h"

#include <dlfcn.h>

namespace drover {

std::unique_ptr<XenHost> open_xen_host() {
    // Never unloaded: libxl leaves a signal handler.
    void* const library = ::dlopen(paths().xen.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw Error(ErrorKind::usage,
                    fmt::format("the driver for Xen can't be loaded, as it is not installed, or "
                                "Xen's libraries are not (Debian: libxenmisc4.17): {}",
                                ::dlerror()));
    }
    const auto open = reinterpret_cast<OpenXenHost>(::dlsym(library, open_xen_host_name));
    if (open == nullptr) {
        throw Error(ErrorKind::usage, fmt::format("{}: of another version of drover", paths().xen));
    }
    std::string error;
    std::unique_ptr<XenHost> host(open(error));
    if (!host) {
        throw Error(ErrorKind::state,
                    fmt::format("this is no Xen host, or drover may not control it: {}", error));
    }
    return host;
}

} // namespace drover
