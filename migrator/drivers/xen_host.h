// SPDX-License-Identifier: GPL-2.0-or-later
// What the driver for Xen asks of Xen's libraries. They come in a shared object of their own
// (migrator/xen), which is loaded when a VM of Xen is moved: the rest of drover runs where they are
// missing. All of it blocks; any thread, also at the same time. Errors: state, with what libxl has
// said; cancelled.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace drover {

struct XenDisk {
    std::string vdev; // "xvda"
    std::string path; // of the block device
};

struct XenNic {
    std::string mac; // lower case
    std::string bridge;
};

struct XenDomain {
    std::string name;
    std::string uuid;
    std::string type; // "pv", "pvh", "hvm"
    uint64_t memory_kib = 0, max_memory_kib = 0;
    unsigned vcpus = 0;
    std::vector<XenDisk> disks;
    std::vector<XenNic> nics;
    // What it has that can't be moved, each with the reason.
    std::vector<std::string> obstacles;
};

// The names of Xen's hotplug scripts; empty: its own.
struct XenScripts {
    std::string disk;
    std::string nic;
};

// What an xl configuration (xl.cfg(5)) says.
struct XenConfig {
    std::string name;
    std::vector<XenDisk> disks;
};

enum class XenState {
    runs,
    paused,
    suspended, // by a save: it holds its memory, and can go on
    ended,     // gone, or shut down by itself
};

class XenHost {
public:
    virtual ~XenHost() = default;

    virtual XenConfig read_config(const std::string& path) = 0;
    virtual std::optional<uint32_t> find(const std::string& name) = 0;
    virtual XenDomain describe(uint32_t domain) = 0;
    virtual XenState state(uint32_t domain) = 0;
    // Whether its writes can be tracked, which moving it while it runs needs. Not while it is
    // saved.
    virtual bool can_track(uint32_t domain) = 0;
    // While it is saved: pages that it has changed since the save has last looked; nullopt: not
    // known.
    virtual std::optional<uint64_t> dirty_pages(uint32_t domain) = 0;
    // While it is saved: how often the save has gone through the memory.
    virtual unsigned passes() const = 0;

    // Writes its memory to `fd` while it runs, then suspends it and writes the rest.
    virtual void save(uint32_t domain, int fd) = 0;
    // Whatever a save that has ended, or whose process is gone, has left: it runs.
    virtual void resume(uint32_t domain) = 0;
    // The same VM from such a stream: its id, as soon as there is one, goes to `domain`. Paused.
    virtual void
    restore(const XenDomain& as, const XenScripts& scripts, int fd, uint32_t& domain) = 0;
    // A save or restore that goes on in another thread fails soon.
    virtual void interrupt() = 0;

    virtual void rename(uint32_t domain, const std::string& from, const std::string& to) = 0;
    virtual void unpause(uint32_t domain) = 0;
    virtual void destroy(uint32_t domain) = 0;
    // A word that stays with the domain as long as there is one; "" removes it.
    virtual void set_note(uint32_t domain, const std::string& text) = 0;
    virtual std::string note(uint32_t domain) = 0;
};

// The one function of the shared object; nullptr, with `error`, where there is no Xen.
using OpenXenHost = XenHost* (*)(std::string& error);
inline constexpr const char* open_xen_host_name = "drover_open_xen_host_1";

// Throws Error(usage) where Xen's libraries are missing, Error(state) where this is no Xen host.
std::unique_ptr<XenHost> open_xen_host();

} // namespace drover
