// SPDX-License-Identifier: GPL-2.0-or-later
// The VM at the source as sides.h has it, by a driver.
#pragma once

#include "migrator/config.h"
#include "migrator/driver.h"
#include "migrator/sides.h"

namespace drover {

class DrivenVm : public VmAtSource {
public:
    // Both outlive it.
    DrivenVm(OutgoingVm& driver, const Timeouts& timeouts) : driver_(driver), timeouts_(timeouts) {}

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

    static constexpr milliseconds resume_patience{20000};

    OutgoingVm& driver_;
    const Timeouts& timeouts_;
    bool reattached_ = false, paused_ = false;
    Presence presence_ = Presence::attached;
};

} // namespace drover
