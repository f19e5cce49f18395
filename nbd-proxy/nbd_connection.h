// SPDX-License-Identifier: GPL-2.0-or-later
// One NBD connection (a libnbd handle) and the thread that moves it along.
#pragma once

#include "common/unique_fd.h"
#include "nbd-proxy/nbd_handle.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace drover {

// Waits for the commands that make up one request. Must outlive them.
class NbdCompletion {
public:
    void expect(); // once for each command, before it is submitted
    void finished(int error);
    // Until all have finished; false if that takes longer than limit (0: no limit).
    bool wait(std::chrono::milliseconds limit = {});
    // The first error of any, an errno; nbd_connection_lost: it will not be answered. After wait().
    int error() const { return error_; }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    unsigned pending_ = 0;
    int error_ = 0;
};

inline constexpr int nbd_connection_lost = ENOTCONN; // libnbd's; no server can send it

enum class NbdVerb { read, write, flush, trim, zero, cache, extents };

// Stays where it is from submit() until its completion is told; so does what it points to.
struct NbdCommand {
    NbdVerb verb = NbdVerb::flush;
    Extent where;
    uint32_t flags = 0;                            // LIBNBD_CMD_FLAG_*
    void* to = nullptr;                            // read
    const void* from = nullptr;                    // write
    std::vector<BackendExtent>* extents = nullptr; // extents: what the server says, unclipped
    NbdCompletion* completion = nullptr;
    std::atomic<unsigned>* in_flight = nullptr; // set by submit()
    bool told = false;                          // that it has finished
};

class NbdConnection {
public:
    // What the handshake found.
    struct Server {
        uint64_t size = 0;
        bool read_only = false, rotational = false, multi_conn = false;
        bool flush = false, fua = false, trim = false, zero = false, fast_zero = false;
        bool cache = false, extents = false;
        uint32_t minimum = 0, preferred = 0, maximum = 0; // 0: it did not say
    };

    // Connects; name is for messages. Throws as NbdClient does. lost is called once, from any
    // thread, with the reason, when the connection ends before the destructor.
    NbdConnection(const NbdClientOptions& options,
                  const std::string& name,
                  std::function<void(const std::string&)> lost);
    ~NbdConnection();
    NbdConnection(const NbdConnection&) = delete;
    NbdConnection& operator=(const NbdConnection&) = delete;

    const Server& server() const { return server_; }
    unsigned in_flight() const { return in_flight_; }

    // Thread-safe. command.completion is told exactly once, maybe before this returns.
    void submit(NbdCommand& command);
    // Thread-safe: ends the connection, so that what is in flight fails soon.
    void give_up();

private:
    void ask_server();
    int64_t issue(NbdCommand& command);
    void kick();
    void run();
    bool ended() const;

    NbdHandle handle_;
    Server server_;
    std::function<void(const std::string&)> lost_;
    UniqueFd wake_; // an eventfd
    std::atomic<unsigned> in_flight_ = 0;
    std::atomic<bool> give_up_ = false, stop_ = false;
    std::thread thread_;
};

} // namespace drover
