// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/forwarding.h"

#include "common/error.h"

#include <algorithm>
#include <utility>

#include <unistd.h>

namespace drover {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds first_retry{20}, last_retry{1000};

} // namespace

std::string forward_export(const Record& record) {
    return fmt::format("forward/{}/{}/{}", record.migration, record.generation, record.version);
}

Forwarding::~Forwarding() {
    stop();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void Forwarding::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    stopping_.notify_all();
    if (early_) {
        early_->give_up = true;
    }
    if (owner_) {
        owner_->stop();
    }
}

void Forwarding::begin(NbdClientOptions to, std::string export_name) {
    const auto early = std::make_shared<Early>();
    to.export_name = std::move(export_name);
    to.multi_conn = true;
    to.give_up = &early->give_up;
    early->client = std::async(std::launch::async, [to = std::move(to)] {
        struct Key {
            const std::string& file;
            ~Key() { ::unlink(file.c_str()); }
        } const key{to.psk_file};
        return std::make_unique<NbdClient>(to);
    });
    std::shared_ptr<Early> older; // its end may take a moment
    const std::lock_guard lock(mutex_);
    older = std::exchange(early_, early);
}

void Forwarding::take_back() {
    std::shared_ptr<Early> early;
    const std::lock_guard lock(mutex_);
    early.swap(early_);
}

// Null: there is none. It waits for its end.
std::unique_ptr<NbdClient> Forwarding::early() {
    std::shared_ptr<Early> early;
    {
        const std::lock_guard lock(mutex_);
        early = early_;
    }
    std::unique_ptr<NbdClient> client;
    if (early) {
        try {
            client = early->client.get();
        } catch (const std::exception&) {
            // It is tried anew, like after every other loss.
        }
        take_back();
    }
    return client && client->alive() ? std::move(client) : nullptr;
}

std::unique_ptr<NbdClient> Forwarding::dial(const std::atomic<bool>& give_up) {
    if (auto client = early()) {
        return client;
    }
    // It may have been unfenced or promoted since.
    const auto still = [](const Record& record) {
        if (!record.forward) {
            throw Error(ErrorKind::state, "the disk does not forward any more");
        }
        return record;
    };
    Record now = still(context_.record.get());
    const bool numbered = now.forward->uri.empty();
    if (numbered) {
        now = context_.record.renew(still);
    }
    const ForwardTarget& target = now.forward.value();
    NbdClientOptions options{
        .uri = target.uri, .socket = target.socket, .host = target.host, .give_up = &give_up};
    if (!target.host.empty()) {
        options.port = std::to_string(target.port);
        options.psk_user = target.psk_user;
        options.psk_file = target.key_file;
    }
    if (numbered) {
        // A number that was never used before, durably.
        options.export_name = forward_export(now);
        options.multi_conn = true;
    }
    return std::make_unique<NbdClient>(options);
}

void Forwarding::connect() {
    if (owner()) {
        return; // it has answers to keep; and it connects again by itself
    }
    // The clients' requests never fail for an owner that cannot be reached.
    const auto made = std::make_shared<ReconnectingClient>(
        [this](const std::atomic<bool>& give_up) { return dial(give_up); },
        std::nullopt,
        context_.options.client_gone);
    {
        const std::lock_guard lock(mutex_);
        owner_ = made;
    }
    context_.disk.forward_to(made);
}

void Forwarding::keep_connecting() {
    thread_ = std::thread([this] {
        for (milliseconds pause = first_retry;; pause = std::min(2 * pause, last_retry)) {
            try {
                const std::lock_guard one(context_.control);
                if (context_.record.get().forward) {
                    connect();
                }
                return;
            } catch (const std::exception&) {
                // Not there yet; status says that the disk forwards.
            }
            std::unique_lock lock(mutex_);
            if (stopping_.wait_for(lock, pause, [this] { return stopped_; })) {
                return;
            }
        }
    });
}

void Forwarding::end() {
    take_back();
    const std::lock_guard lock(mutex_);
    if (const auto ended = std::exchange(owner_, nullptr)) {
        ended->stop();
    }
}

void Forwarding::flush() {
    if (const std::shared_ptr<ReconnectingClient> to = owner()) {
        to->flush();
    }
}

std::shared_ptr<ReconnectingClient> Forwarding::owner() const {
    const std::lock_guard lock(mutex_);
    return owner_;
}

} // namespace drover
