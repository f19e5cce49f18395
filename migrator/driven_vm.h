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

    // For whoever has not described it: with the notes of the journal.
    asio::awaitable<void> reattach(nlohmann::json notes) {
        paused_ = notes.value("paused", false);
        reattached_ = true;
        there_ = false;
        there_ = co_await driver_.reattach(std::move(notes));
    }

    bool has_memory() const override { return driver_.has_memory(); }
    bool was_paused() const override { return reattached_ ? paused_ : driver_.was_paused(); }
    asio::awaitable<void> finish_memory() override {
        return driver_.finish_memory(timeouts_.handover);
    }
    asio::awaitable<bool> is_there() override { co_return there_&& driver_.state() != "ended"; }
    asio::awaitable<void> resume() override {
        if (!there_) {
            throw Error(ErrorKind::state, "it does not run here any more: start it");
        }
        co_await driver_.cancel(resume_patience);
    }
    asio::awaitable<void> destroy() override {
        if (there_) {
            co_await driver_.destroy_source(timeouts_.stop);
        }
    }

private:
    static constexpr milliseconds resume_patience{20000};

    OutgoingVm& driver_;
    const Timeouts& timeouts_;
    bool reattached_ = false, paused_ = false;
    bool there_ = true;
};

} // namespace drover
