// SPDX-License-Identifier: GPL-2.0-or-later
// A disk behind an NBD server that may go away and come back: another server's (uri=), or a disk
// that has moved, for a client that stayed. Requests wait meanwhile.
#pragma once

#include "nbd-proxy/client_gone.h"
#include "nbd-proxy/nbd_client.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace drover {

// Thread-safe. Answered changes are kept until a flush after them has succeeded (at most
// `most_kept` bytes: then it flushes by itself), and done again, in order and before anything else,
// on each new connection: the process or host that answered them may have lost them. Where that is
// not possible, and when the server's disk fails a flush, every later flush fails.
//
// Requests that were under way are sent again, too. A server process that lives on while its
// connection is lost could still do one of them then, after what was written later; who can be
// asked to, like drover's `forward` export, waits for them first.
class ReconnectingClient final : public Backend {
public:
    // Makes a client of the server, throws Error while that can't be had; soon after give_up has
    // become true it throws.
    using Connect = std::function<std::unique_ptr<NbdClient>(const std::atomic<bool>& give_up)>;
    // How long a request waits for a server that is gone, counted from when it went; nullopt: for
    // as long as it takes. After that requests fail at once (Error(peer), EIO) but for one now and
    // then that tries again. What a last attempt to connect takes comes on top.
    using Patience = std::optional<std::chrono::milliseconds>;

    // Returns once the first connection stands, or throws what connect did.
    ReconnectingClient(Connect connect, Patience patience, ClientGone gone = {});
    // No call may be under way.
    ~ReconnectingClient() override;

    // Ends the requests that wait, and later ones, as cancelled, with ESHUTDOWN.
    void stop();

    uint64_t size() const override { return size_; }
    const Features& features() const override { return features_; }
    bool read_only() const override { return read_only_; }
    const std::string& name() const override { return name_; }

    void read(void* data, Extent where) override;
    void write(const void* data, Extent where, bool fua) override;
    void flush() override;
    bool trim(Extent where, bool fua) override;
    void zero(Extent where, bool may_punch, bool fast, bool fua) override;
    void cache(Extent where) override;
    std::vector<BackendExtent> extents(Extent where, bool one) override;

private:
    static constexpr uint64_t most_kept = 64 * MiB;
    using Clock = std::chrono::steady_clock;
    using Lock = std::unique_lock<std::mutex>;

    struct Change {
        uint64_t number = 0;
        uint64_t cost = 0;
        std::function<void(NbdClient&)> repeat;
    };
    class Use;

    bool await_server(Lock& lock);
    std::unique_ptr<NbdClient> try_to_connect();
    void lost();
    template <typename Request>
    auto persist(Request&& request);
    template <typename Do, typename Repeat>
    void change(bool fua, uint64_t bytes, Do&& doing, Repeat&& repeat);
    bool keep(uint64_t bytes, std::function<void(NbdClient&)> repeat);
    void give_up_flushing();
    [[noreturn]] void unreachable() const;

    const Connect connect_;
    const Patience patience_;
    const ClientGone client_gone_;
    uint64_t size_ = 0;
    Features features_;
    bool read_only_ = false;
    std::string name_;
    std::atomic<bool> stopped_{false};

    std::mutex mutex_; // all below
    std::condition_variable changed_;
    std::unique_ptr<NbdClient> client_;
    bool usable_ = true; // client_ may be used; false: it is lost
    unsigned users_ = 0; // requests that have client_, from before they are sent until what they
                         // did is kept
    bool connecting_ = false; // by one of the requests that wait
    std::string why_;         // it failed last time
    Clock::time_point lost_at_, next_try_;
    std::chrono::milliseconds pause_{};

    bool flush_failed_ = false;
    std::list<Change> kept_;
    uint64_t kept_bytes_ = 0, last_number_ = 0;
};

} // namespace drover
