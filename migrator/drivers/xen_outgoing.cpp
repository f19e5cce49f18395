// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/xen.h"
#include "migrator/kernel_disk.h"
#include "migrator/paths.h"

#include <algorithm>

#include <asio/this_coro.hpp>

namespace drover {
namespace {

using Json = nlohmann::json;

constexpr milliseconds look_interval{500}, suspend_interval{20};
// Of the domain, while it is saved.
constexpr const char* leaving = "leaving";
constexpr uint64_t page_size = 4096;

const char* name_of(XenState state) {
    switch (state) {
    case XenState::runs:
        return "running";
    case XenState::paused:
        return "paused";
    case XenState::suspended:
        return "suspended";
    case XenState::ended:
        break;
    }
    return "ended";
}

} // namespace

XenOutgoing::XenOutgoing(const VmFile& vm, std::string config)
    : vm_(vm), config_(std::move(config)) {}

XenOutgoing::~XenOutgoing() {
    lost_ = nullptr;
}

void XenOutgoing::open() {
    if (!host_) {
        host_ = open_xen_host();
    }
}

asio::awaitable<void> XenOutgoing::describe(HypervisorLost lost) {
    open();
    check_config();
    find();
    co_await undo_leftover();
    look_at_domain();
    check_tracking();
    lost_ = std::move(lost);
    const auto executor = co_await asio::this_coro::executor;
    timer_.emplace(executor);
    watch();
}

void XenOutgoing::find() {
    const auto id = host_->find(vm_.name);
    if (!id) {
        throw Error(ErrorKind::state,
                    fmt::format("no domain {0} runs here: `xl create` starts it, with its disks "
                                "where `drover serve {0}` has put them",
                                vm_.name));
    }
    id_ = *id;
}

void XenOutgoing::look_at_domain() {
    const XenState now = host_->state(id_);
    state_ = name_of(now);
    if (now != XenState::runs) {
        throw Error(ErrorKind::state,
                    fmt::format("{} can't be migrated: its domain is {}, and only a guest that "
                                "runs can suspend itself",
                                vm_.name,
                                state_));
    }
    domain_ = host_->describe(id_);
    check_domain();
}

// Whether the writes of a PV guest can be tracked is found out by tracking them, which is not done.
asio::awaitable<Inspection> XenOutgoing::inspect() {
    Inspection inspection;
    Findings& found = inspection.findings;
    try {
        open();
        check_config();
        find();
        if (host_->note(id_) == leaving) {
            found.push_back({Level::note,
                             "hypervisor",
                             "a migration that was killed has left its domain; the next one "
                             "resumes it",
                             ""});
            domain_ = host_->describe(id_);
            check_domain();
        } else {
            look_at_domain();
        }
        found.push_back({Level::ok,
                         "hypervisor",
                         fmt::format("libxl answers, {} guest of {}",
                                     domain_.type,
                                     format_size(domain_.memory_kib * KiB)),
                         ""});
    } catch (const Error& error) {
        found.push_back({Level::problem, "hypervisor", error.what(), ""});
        co_return inspection;
    }
    if (domain_.type == "pv") {
        found.push_back({Level::note,
                         "hypervisor",
                         "whether this Xen has the shadow paging that moving a PV guest needs was "
                         "not tried; `drover migrate` does before it begins",
                         ""});
    }
    co_return inspection;
}

void XenOutgoing::check_config() const {
    if (config_.empty()) {
        return;
    }
    const XenConfig config = host_->read_config(config_);
    if (config.name != vm_.name) {
        throw Error(ErrorKind::usage,
                    fmt::format("{}: 'name': \"{}\" is expected, as the VM file has it, not \"{}\"",
                                config_,
                                vm_.name,
                                config.name));
    }
    check_disks(config.disks, config_);
}

void XenOutgoing::check_domain() const {
    if (!domain_.obstacles.empty()) {
        throw Error(
            ErrorKind::state,
            fmt::format("{} can't be migrated: {}", vm_.name, fmt::join(domain_.obstacles, "; ")));
    }
    check_disks(domain_.disks, "the domain");
    std::vector<std::string> here, named;
    for (const XenNic& nic : domain_.nics) {
        here.push_back(nic.mac);
    }
    for (const NicSpec& nic : vm_.nics) {
        named.push_back(nic.mac);
    }
    std::sort(here.begin(), here.end());
    std::sort(named.begin(), named.end());
    if (here != named) {
        throw Error(
            ErrorKind::usage,
            fmt::format("{}: a [[nic]] for each of the domain's is expected: {}",
                        vm_.path,
                        here.empty() ? "it has none" : fmt::format("{}", fmt::join(here, ", "))));
    }
}

void XenOutgoing::check_tracking() const {
    if (domain_.type == "pv" && !host_->can_track(id_)) {
        throw Error(ErrorKind::state,
                    fmt::format("{} can't be migrated while it runs: this Xen was built without "
                                "shadow paging, which finding out what a PV guest writes needs. "
                                "As a PVH guest it can, or with a Xen that has it",
                                vm_.name));
    }
}

// Each of the VM's disks once, and nothing that would stay behind.
void XenOutgoing::check_disks(const std::vector<XenDisk>& disks, const std::string& where) const {
    for (const XenDisk& disk : disks) {
        const bool served = std::any_of(vm_.disks.begin(), vm_.disks.end(), [&](const auto& each) {
            return paths().disk_device(vm_.name, each.name) == disk.path;
        });
        if (!served) {
            throw Error(ErrorKind::usage,
                        fmt::format("{}: its disk {} is {}, which is no disk that Drover serves: "
                                    "'{}' is the first of {}",
                                    where,
                                    disk.vdev,
                                    disk.path,
                                    paths().disk_device(vm_.name, vm_.disks.front().name),
                                    vm_.path));
        }
    }
    if (disks.size() != vm_.disks.size()) {
        throw Error(
            ErrorKind::usage,
            fmt::format(
                "{}: it has {} disks, {} has {}", where, disks.size(), vm_.path, vm_.disks.size()));
    }
}

std::map<std::string, std::string> XenOutgoing::values() const {
    std::vector<std::string> vdevs;
    for (const DiskSpec& disk : vm_.disks) {
        const std::string path = paths().disk_device(vm_.name, disk.name);
        const auto found = std::find_if(domain_.disks.begin(),
                                        domain_.disks.end(),
                                        [&](const XenDisk& each) { return each.path == path; });
        vdevs.push_back(found->vdev);
    }
    return {{"type", domain_.type},
            {"memory", fmt::format("{}K", domain_.memory_kib)},
            {"max-memory", fmt::format("{}K", domain_.max_memory_kib)},
            {"cpus", std::to_string(domain_.vcpus)},
            {"uuid", domain_.uuid},
            {"vdevs", fmt::format("{}", fmt::join(vdevs, ","))}};
}

Json XenOutgoing::notes() const {
    return {{"domain", id_}, {"uuid", domain_.uuid}};
}

asio::awaitable<bool> XenOutgoing::reattach(Json notes) {
    open();
    id_ = notes.value("domain", uint32_t{0});
    if (id_ == 0 || host_->state(id_) == XenState::ended ||
        host_->describe(id_).uuid != notes.value("uuid", "")) {
        co_return false;
    }
    state_ = name_of(host_->state(id_));
    started_ = true;
    co_return true;
}

// As QemuOutgoing has it: the disks are this host's, so nothing of it runs elsewhere.
asio::awaitable<void> XenOutgoing::undo_leftover() {
    if (host_->note(id_) != leaving) {
        co_return;
    }
    std::function<void()> work = [this] {
        host_->resume(id_);
        host_->set_note(id_, "");
    };
    co_await on_a_thread(std::move(work));
}

// Xen tells of the end of a domain by a watch in xenstore; looking at it costs less than that.
void XenOutgoing::watch() {
    timer_->expires_after(look_interval);
    timer_->async_wait([this](asio::error_code error) {
        try {
            if (!error) {
                look();
            }
        } catch (const Error&) {
            watch(); // the hypervisor answers no more; whoever needs it says so
        }
    });
}

void XenOutgoing::look() {
    const XenState now = host_->state(id_);
    state_ = name_of(now);
    if (now != XenState::ended) {
        watch();
        return;
    }
    if (const HypervisorLost lost = std::exchange(lost_, nullptr)) {
        lost("its domain has ended, or was shut down");
    }
}

asio::awaitable<void> XenOutgoing::start_outgoing(MemoryLink link, MemoryTuning tuning) {
    started_ = true;
    host_->set_note(id_, leaving);
    co_await tune(tuning);
    std::function<void()> work = [this, link] {
        stream_.connect(link);
        stream_.send([this](int fd) { host_->save(id_, fd); });
    };
    std::function<void()> stop = [this] {
        stream_.interrupt();
        host_->interrupt();
    };
    const auto executor = co_await asio::this_coro::executor;
    saving_ = std::make_unique<Job>(executor, std::move(work), std::move(stop));
}

// Xen has no limit of the downtime: it stops the guest when little is left, or after the fifth
// pass.
asio::awaitable<void> XenOutgoing::tune(MemoryTuning tuning) {
    stream_.limit(tuning.max_bandwidth);
    co_return;
}

asio::awaitable<MemoryProgress> XenOutgoing::progress() {
    MemoryProgress progress;
    progress.total_bytes = domain_.memory_kib * KiB;
    progress.sent_bytes = stream_.bytes();
    progress.passes = host_->passes();
    const bool first_pass = progress.passes <= 1;
    const auto dirty = host_->dirty_pages(id_);
    progress.remaining_bytes =
        first_pass ? progress.total_bytes - std::min(progress.total_bytes, progress.sent_bytes)
                   : dirty.value_or(0) * page_size;
    co_return progress;
}

void XenOutgoing::throw_if_failed() const {
    if (!saving_->ended()) {
        return;
    }
    try {
        saving_->rethrow();
    } catch (const Error& error) {
        throw Error(ErrorKind::peer,
                    fmt::format("the memory did not get across: {}", error.what()));
    }
}

asio::awaitable<void> XenOutgoing::wait_paused(Deadline deadline) {
    while (host_->state(id_) != XenState::suspended) {
        throw_if_failed();
        if (Clock::now() >= deadline) {
            throw Error(ErrorKind::timeout, "Xen still sends memory, and has not suspended it");
        }
        const Deadline soon = Clock::now() + suspend_interval; // no event tells
        co_await saving_->wait(std::min(soon, deadline));
        if (saving_->ended() && host_->state(id_) == XenState::runs) {
            throw_if_failed();
            throw Error(ErrorKind::state, "Xen has saved the guest without suspending it");
        }
    }
    state_ = name_of(XenState::suspended);
}

asio::awaitable<void> XenOutgoing::finish_memory(milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    const bool over = co_await saving_->wait(deadline);
    if (!over) {
        throw Error(ErrorKind::timeout, "the last of the memory does not get across");
    }
    throw_if_failed();
    // From here the VM is whole at the other end.
    lost_ = nullptr;
    std::vector<asio::awaitable<void>> settling;
    for (const DiskSpec& disk : vm_.disks) {
        std::function<void()> work = [device = paths().disk_device(vm_.name, disk.name)] {
            settle_kernel_disk(device);
        };
        settling.push_back(on_a_thread(std::move(work)));
    }
    co_await all(std::move(settling));
}

asio::awaitable<void> XenOutgoing::cancel(milliseconds patience) {
    if (!started_) {
        co_return;
    }
    lost_ = nullptr;
    const Deadline deadline = Clock::now() + patience;
    if (saving_) {
        const bool over = co_await saving_->end(deadline);
        if (!over) {
            throw Error(ErrorKind::timeout, "Xen does not end its save");
        }
    }
    if (host_->state(id_) == XenState::ended) {
        throw Error(ErrorKind::refused, "its domain has ended, or was shut down");
    }
    co_await undo_leftover();
    const XenState now = host_->state(id_);
    state_ = name_of(now);
    started_ = false;
    if (now == XenState::suspended || now == XenState::ended) {
        throw Error(ErrorKind::refused, fmt::format("its domain is {}", state_));
    }
}

asio::awaitable<void> XenOutgoing::destroy_source(milliseconds) {
    lost_ = nullptr;
    std::function<void()> work = [this] { host_->destroy(id_); };
    co_await on_a_thread(std::move(work));
    state_ = name_of(XenState::ended);
}

} // namespace drover
