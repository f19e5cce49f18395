// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/drivers/xen.h"
#include "migrator/kernel_disk.h"
#include "migrator/paths.h"
#include "migrator/serve.h"

#include <asio/post.hpp>
#include <asio/this_coro.hpp>

namespace drover {
namespace {

// Of a domain that comes in, once it holds its whole memory.
constexpr const char* loaded_note = "loaded";

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> words;
    for (size_t at = 0; at <= text.size();) {
        const size_t comma = std::min(text.find(',', at), text.size());
        words.push_back(text.substr(at, comma - at));
        at = comma + 1;
    }
    return words;
}

} // namespace

XenIncoming::XenIncoming(IncomingSpec spec)
    : spec_(std::move(spec)), arriving_(spec_.vm + "--incoming") {}

XenIncoming::~XenIncoming() = default;

// From checked values alone.
XenDomain XenIncoming::domain() const {
    XenDomain domain;
    domain.name = arriving_;
    domain.uuid = spec_.values.at("uuid");
    domain.type = spec_.values.at("type");
    domain.memory_kib = parse_size(spec_.values.at("memory")).value_or(0) / KiB;
    domain.max_memory_kib = parse_size(spec_.values.at("max-memory")).value_or(0) / KiB;
    domain.vcpus = static_cast<unsigned>(std::stoul(spec_.values.at("cpus")));
    const std::vector<std::string> vdevs = split(spec_.values.at("vdevs"));
    for (size_t i = 0; i < spec_.disks.size(); ++i) {
        domain.disks.push_back({vdevs.at(i), paths().disk_device(spec_.vm, spec_.disks[i])});
    }
    for (const NicSpec& nic : spec_.nics) {
        domain.nics.push_back({nic.mac, nic.bridge});
    }
    return domain;
}

asio::awaitable<void>
XenIncoming::start_incoming(MemoryLink link, HypervisorLost lost, milliseconds) {
    host_ = open_xen_host();
    for (const std::string& name : {spec_.vm, arriving_}) {
        if (host_->find(name)) {
            throw Error(ErrorKind::state,
                        fmt::format("a domain {0} is here already: if it is not needed any more, "
                                    "`xl destroy {0}`",
                                    name));
        }
    }
    std::vector<asio::awaitable<void>> attaching;
    for (const std::string& disk : spec_.disks) {
        std::function<void()> work = [vm = spec_.vm, disk] { attach_kernel_disk(vm, disk); };
        attaching.push_back(on_a_thread(std::move(work)));
    }
    co_await all(std::move(attaching));
    const auto executor = co_await asio::this_coro::executor;
    const auto listener = std::make_shared<Listener>(listen_tcp(link.host, link.port));
    lost_ = std::make_shared<HypervisorLost>(std::move(lost));
    std::function<void()> work = [this, executor, listener, link] {
        try {
            stream_.accept(std::move(listener->fd), link);
            const XenScripts scripts{spec_.disk_script, spec_.nic_script};
            stream_.receive([&](int fd) { host_->restore(domain(), scripts, fd, restored_); });
        } catch (const std::exception& error) {
            const std::string what = fmt::format("Xen does not get it: {}", error.what());
            asio::post(executor, [told = std::weak_ptr(lost_), what] {
                if (const auto one = told.lock()) {
                    (*one)(what);
                }
            });
            throw Error(ErrorKind::peer, what);
        }
    };
    std::function<void()> stop = [this] {
        stream_.interrupt();
        host_->interrupt();
    };
    restoring_ = std::make_unique<Job>(executor, std::move(work), std::move(stop));
    state_ = "waits for the memory";
}

asio::awaitable<void> XenIncoming::wait_loaded(Deadline deadline) {
    const bool over = co_await restoring_->wait(deadline);
    if (!over) {
        throw Error(ErrorKind::timeout, "Xen has not got the whole memory in time");
    }
    restoring_->rethrow();
    if (host_->state(restored_) != XenState::paused) {
        throw Error(ErrorKind::state, "Xen does not hold the domain paused, as it should");
    }
    lost_.reset();
    host_->set_note(restored_, loaded_note);
    id_ = restored_;
    loaded_ = true;
    state_ = "paused";
}

asio::awaitable<bool> XenIncoming::adopt(milliseconds) {
    host_ = open_xen_host();
    id_ = host_->find(arriving_);
    if (id_) {
        loaded_ = host_->note(*id_) == loaded_note;
        state_ = loaded_ ? "paused" : "half restored";
        co_return true;
    }
    may_have_run_ = true; // another agent has told it, or not
    id_ = host_->find(spec_.vm);
    loaded_ = id_ && host_->note(*id_) == loaded_note &&
              host_->describe(*id_).uuid == spec_.values.at("uuid");
    if (!loaded_) {
        id_.reset();
    }
    state_ = loaded_ ? "running" : "ended";
    co_return loaded_;
}

asio::awaitable<void> XenIncoming::run(bool paused, milliseconds) {
    if (!loaded_) {
        throw Error(ErrorKind::state,
                    fmt::format("Xen does not hold the memory (the domain is: {})", state_));
    }
    std::function<void()> work = [this, paused] {
        for (const std::string& disk : spec_.disks) {
            forget_cached(paths().disk_device(spec_.vm, disk));
        }
        if (host_->find(arriving_) == id_) {
            host_->rename(*id_, arriving_, spec_.vm);
        }
        may_have_run_ = true;
        if (!paused && host_->state(*id_) == XenState::paused) {
            host_->unpause(*id_);
        }
    };
    co_await on_a_thread(std::move(work));
    if (host_->state(*id_) == XenState::ended) {
        throw Error(ErrorKind::state, "the domain has ended");
    }
    state_ = paused ? "paused" : "running";
}

asio::awaitable<void> XenIncoming::destroy(milliseconds patience) {
    const Deadline deadline = Clock::now() + patience;
    lost_.reset();
    if (restoring_) {
        const bool over = co_await restoring_->end(deadline);
        if (!over) {
            throw Error(ErrorKind::timeout, "Xen does not end its restore");
        }
    }
    loaded_ = false;
    // Whatever became of the restore: only what comes in has this name.
    std::function<void()> work = [this] {
        if (const auto found = host_ ? host_->find(arriving_) : std::nullopt) {
            host_->destroy(*found);
        }
    };
    co_await on_a_thread(std::move(work));
    state_ = "ended";
}

} // namespace drover
