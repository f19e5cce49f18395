// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/postcopy.h"

#include "common/secrets.h"

namespace drover {
namespace {

using rpc::Json;

constexpr milliseconds look_interval{500}, retry_interval{2000};
// With nothing sent for so long the link counts as dead: TCP itself would not say so for a quarter
// of an hour.
constexpr std::chrono::seconds silence{15};

// Over a new agent where the last one has gone with its link.
// false: the guest is gone.
asio::awaitable<bool> link_again(OutgoingVm& here, PeerAgent& there, std::string data_address) {
    MemoryLink link;
    link.host = std::move(data_address);
    link.psk_key = random_hex(32);
    const std::optional<DataPort> port = co_await there.memory_again(link.psk_key);
    if (!port) {
        co_return false;
    }
    link.port = port->port;
    link.psk_user = port->psk_user;
    co_await here.send_again(std::move(link));
    co_return true;
}

} // namespace

asio::awaitable<void>
see_memory_across(OutgoingVm& here, PeerAgent& there, std::string data_address, PostcopyNews news) {
    uint64_t sent = 0;
    Deadline sent_at = Clock::now();
    std::string told;
    for (;;) {
        const MemoryRest rest = co_await here.rest();
        if (rest == MemoryRest::none) {
            co_return;
        }
        const MemoryProgress now = co_await here.progress();
        news.progress(now);
        if (now.sent_bytes != sent) {
            sent = now.sent_bytes;
            sent_at = Clock::now();
        }
        milliseconds pause = look_interval;
        if (rest == MemoryRest::interrupted || Clock::now() - sent_at > silence) {
            std::string failure;
            bool lives = true;
            try {
                lives = co_await link_again(here, there, data_address);
                sent_at = Clock::now();
            } catch (const Error& error) {
                failure = error.what();
                pause = retry_interval;
            }
            if (!lives) {
                here.forget_rest();
                throw Error(ErrorKind::state, "its hypervisor there has ended");
            }
            if (failure.empty() || failure != told) {
                news.warning(failure.empty()
                                 ? "the memory goes on over a new link"
                                 : fmt::format("the guest waits for its memory: {}", failure));
                told = failure;
            }
        }
        co_await sleep_for(pause);
    }
}

} // namespace drover
