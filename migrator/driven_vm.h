// SPDX-License-Identifier: GPL-2.0-or-later
// The VM at the source as sides.h has it, by a driver.
#pragma once

#include "migrator/config.h"
#include "migrator/driver.h"
#include "migrator/sides.h"
#include "migrator/tunnels.h"

namespace drover {

class DrivenVm : public VmAtSource {
public:
    // Driver and timeouts outlive it.
    DrivenVm(std::string vm, OutgoingVm& driver, const Timeouts& timeouts)
        : vm_(std::move(vm)), driver_(driver), timeouts_(timeouts) {}

    // For whoever has not described it: with the notes of the journal. Where that throws, the VM
    // counts as one that is there and does not answer.
    asio::awaitable<void> reattach(nlohmann::json notes) {
        paused_ = notes.value("paused", false);
        reattached_ = true;
        presence_ = Presence::silent;
        const bool found = co_await driver_.reattach(std::move(notes));
        presence_ = found ? Presence::attached : Presence::gone;
    }

    bool has_memory() const override { return driver_.has_memory(); }
    bool was_paused() const override { return reattached_ ? paused_ : driver_.was_paused(); }
    asio::awaitable<void> finish_memory() override {
        return driver_.finish_memory(timeouts_.handover);
    }
    asio::awaitable<bool> is_there() override {
        const bool here = presence_ == Presence::attached && driver_.state() != "ended";
        co_return presence_ == Presence::silent || here;
    }
    asio::awaitable<void> resume() override {
        if (presence_ == Presence::gone) {
            throw Error(ErrorKind::state, "it does not run here any more: start it");
        }
        throw_if_silent();
        co_await driver_.cancel(resume_patience);
        if (driver_.has_memory()) {
            co_await take_frames_in();
        }
    }
    asio::awaitable<void> destroy() override {
        throw_if_silent();
        if (presence_ == Presence::attached) {
            co_await driver_.destroy_source(timeouts_.stop);
        }
    }

private:
    enum class Presence { attached, silent, gone };
    void throw_if_silent() const {
        if (presence_ == Presence::silent) {
            throw Error(ErrorKind::timeout, "its hypervisor does not answer");
        }
    }

    // Before the destination closes its end. What fails here is told when the tunnels are settled.
    asio::awaitable<void> take_frames_in() {
        try {
            co_await take_tunnels_in(vm_);
            co_await wait_for_kept_frames(vm_);
        } catch (const Error&) {
        }
    }

    static constexpr milliseconds resume_patience{20000};

    const std::string vm_;
    OutgoingVm& driver_;
    const Timeouts& timeouts_;
    bool reattached_ = false, paused_ = false;
    Presence presence_ = Presence::attached;
};

} // namespace drover
