// SPDX-License-Identifier: GPL-2.0-or-later
// Finds what the destination has already (docs/design.md, "Hash skip"): asks for
// the hashes of its blocks, compares them with the blocks here, and has the core mark clean
// what is the same.
#pragma once

#include "nbd-proxy/core/checksum.h"
#include "nbd-proxy/link.h"

#include <deque>

namespace drover {

class Comparer {
public:
    // handle: connected to `hashes`. Throws Error(peer), errno EINVAL, if that is another disk's.
    Comparer(StreamContext& context, NbdHandle handle, uint64_t seed);
    ~Comparer();
    Comparer(const Comparer&) = delete;
    Comparer& operator=(const Comparer&) = delete;

    // Until all was compared (true) or context.stop. Throws Error(peer), errno ENOTCONN, when the
    // connection is lost, and what it got further then is not lost; with another errno when it was
    // refused; Error(io) when the disk here can't be read.
    bool run();
    bool connected() const { return !nbd_ended(handle_.get()); }
    // Something was answered.
    bool has_answers() const { return has_answers_; }

private:
    struct Request {
        Source::Question asked;
        std::vector<Hash128> hashes;
        int64_t cookie = 0;
        uint64_t sent_us = 0;
    };

    bool wait_for_holes() const;
    void ask();
    bool answered();
    void compare(const Request& request);
    void compare_piece(const Request& request, uint64_t first, uint64_t blocks);
    void commit(const Source::Capture& read, uint64_t from, uint64_t to, const Request& request);

    StreamContext& context_;
    Tracked& tracked_;
    const BlockGeometry geometry_;
    const uint64_t seed_;
    std::deque<Request> requests_; // oldest first; outlive the handle
    NbdHandle handle_;
    uint64_t next_block_ = 0;
    bool has_answers_ = false;
    std::vector<std::byte> buffer_;
    GiveWay give_way_;
};

} // namespace drover
