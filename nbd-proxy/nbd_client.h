// SPDX-License-Identifier: GPL-2.0-or-later
// A client of any NBD server: the disk behind uri=, and the way to a disk that has moved.
#pragma once

#include "nbd-proxy/backend.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

namespace drover {

struct NbdClientOptions {
    // Where the server is: exactly one of uri, socket and host.
    std::string uri;    // whatever libnbd understands, TLS included
    std::string socket; // path of a unix socket
    std::string host;
    std::string port = "10809"; // number or service, with host
    std::string export_name;    // with socket or host
    // TLS-PSK with socket or host: required, never fallen back from, when psk_user is set.
    // The file has lines of "USER:HEXKEY".
    std::string psk_user, psk_file;

    bool read_only = false;   // true: changes are refused even where the server takes them
    bool block_status = true; // ask for allocated and zero ranges, for extents()
    unsigned connections = 2; // at most; 1 where the server is not multi-conn
    bool multi_conn = false;  // it is known to be: all are made at once
    std::chrono::milliseconds connect_timeout{10'000};
    const std::atomic<bool>* give_up = nullptr; // connecting fails soon after it has become true
    // A server that takes longer for one request counts as lost; 0: as long as it takes.
    std::chrono::milliseconds request_timeout{0};
    // TCP: data that stays unacknowledged for so long, or no answer to probes when idle.
    std::chrono::milliseconds tcp_timeout{30'000};
};

// Blocking and thread-safe; requests of several threads are in flight at once. What the server
// lacks is made up for: large requests are split, parts of a minimum block read and written back,
// FUA becomes a flush, zeroes are written out. Only this client may change the disk then.
//
// Errors: Error(io) with the server's errno when it refuses a request. When a connection is lost or
// a request takes too long, everything in flight and every later call fails with Error(peer) or
// Error(timeout), errno EIO, and alive() is false: make a new client. Whether a request in flight
// then was done is unknown.
class NbdClient final : public Backend {
public:
    // Connects, with a thread for each connection: not before a fork. Throws Error(peer) or
    // Error(timeout) when it cannot, Error(usage) for options that make no sense.
    explicit NbdClient(const NbdClientOptions& options);
    // Disconnects. No call may be under way.
    ~NbdClient() override;

    bool alive() const;

    uint64_t size() const override;
    const Features& features() const override;
    bool read_only() const override;
    const std::string& name() const override;

    void read(void* data, Extent where) override;
    void write(const void* data, Extent where, bool fua) override;
    void flush() override;
    bool trim(Extent where, bool fua) override;
    void zero(Extent where, bool may_punch, bool fast, bool fua) override;
    void cache(Extent where) override;
    std::vector<BackendExtent> extents(Extent where, bool one) override;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace drover
