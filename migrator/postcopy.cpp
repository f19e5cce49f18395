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

// Over a new agent where the last one has gone with its link. lost: the source has nothing more to
// send, whatever the destination waits for.
asio::awaitable<MemoryWait>
link_again(OutgoingVm& here, PeerAgent& there, std::string data_address, bool lost) {
    MemoryLink link;
    link.host = std::move(data_address);
    link.psk_key = random_hex(32);
    const MemoryAgain again = co_await there.memory_again(link.psk_key);
    if (again.wait == MemoryWait::waits && !lost) {
        link.port = again.at.port;
        link.psk_user = again.at.psk_user;
        co_await here.send_again(std::move(link));
    }
    co_return again.wait;
}

} // namespace

asio::awaitable<bool>
see_memory_across(OutgoingVm& here, PeerAgent& there, std::string data_address, PostcopyNews news) {
    uint64_t sent = 0;
    Deadline sent_at = Clock::now();
    std::string told;
    for (bool was_left = false;; was_left = true) {
        MemoryRest rest = MemoryRest::going;
        std::string failure, lost;
        try {
            rest = co_await here.rest();
            if (rest == MemoryRest::none) {
                co_return was_left;
            }
            const MemoryProgress now = co_await here.progress();
            news.progress(now);
            if (now.sent_bytes != sent) {
                sent = now.sent_bytes;
                sent_at = Clock::now();
            }
        } catch (const Error& error) {
            failure = error.what();
            lost = error.kind() == ErrorKind::state ? failure : "";
        }
        const bool silent = Clock::now() - sent_at > silence;
        if (!lost.empty() || rest == MemoryRest::interrupted || silent) {
            // The destination knows best: what the source takes for lost may be all there.
            MemoryWait wait = MemoryWait::waits;
            bool answered = false;
            try {
                wait = co_await link_again(here, there, data_address, !lost.empty());
                answered = true;
                failure.clear();
            } catch (const Error& error) {
                failure = error.what();
            }
            if (answered && wait == MemoryWait::whole) {
                here.forget_rest();
                co_return true;
            }
            if (answered && (wait == MemoryWait::gone || !lost.empty())) {
                here.forget_rest();
                throw Error(ErrorKind::state,
                            lost.empty() ? "its hypervisor there has ended" : lost);
            }
            if (answered) {
                sent_at = Clock::now();
                news.warning("the memory goes on over a new link");
                told.clear();
            }
        }
        if (!failure.empty() && failure != told) {
            news.warning(fmt::format("the guest waits for its memory: {}", failure));
            told = failure;
        }
        const milliseconds pause = failure.empty() ? look_interval : retry_interval;
        co_await sleep_for(pause);
    }
}

} // namespace drover
