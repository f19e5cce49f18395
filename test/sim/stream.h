// SPDX-License-Identifier: GPL-2.0-or-later
// The source's half of a stream: sessions as in sender.cpp, links as in link.cpp.
#pragma once

#include "test/sim/world.h"

#include <list>

namespace drover::sim {

// What guests and links meet at: tracked.h.
struct TrackedDisk {
    TrackedDisk(BlockGeometry geometry, uint64_t granularity, Source::Limits limits)
        : source(geometry, granularity, limits) {}
    Source source;
    std::shared_ptr<History> history;
    // Memory that stands for the source's: data of frames, captures, logged writes.
    std::shared_ptr<uint64_t> live_bytes = std::make_shared<uint64_t>(0);

    FrameBuffer buffer(size_t capacity) const;
    Bytes copy(const std::byte* data, size_t length) const;
    // A range of the disk, held until this is destroyed.
    class Range {
    public:
        Range(World& world, TrackedDisk& tracked, Extent range);
        ~Range();
        Range(const Range&) = delete;
        Range& operator=(const Range&) = delete;
        bool granted() const { return ticket_->granted; }

    private:
        World& world_;
        TrackedDisk& tracked_;
        RangeLock::Ticket ticket_;
    };
};

// A frame on its way, an open frame, or a flush.
struct Message {
    std::vector<std::byte> bytes;
    Frame* frame = nullptr; // of the source, to acknowledge; null: an open frame or a flush
    bool durable = false;
    bool flush = false;
    Lsn flushed;
    uint64_t arrival = 0;
};
struct Reply {
    Frame* frame = nullptr;
    Lsn flushed;
    int error = 0;
    std::string why;
    uint64_t arrival = 0;
    bool opened = false; // of an open frame
};

// One TCP connection of a session.
struct Connection {
    uint64_t session = 0;
    bool open = true;   // the source's end is
    bool served = true; // the destination's end is
    std::list<Message> wire;
    std::list<Reply> replies;
    unsigned workers = 0;
    // Source.
    unsigned in_flight = 0, opened = 0;
    uint64_t heard = 0; // when something came
};
using ConnectionPtr = std::shared_ptr<Connection>;

class Stream {
public:
    Stream(World& world, Disk& here, Disk& there, std::shared_ptr<TrackedDisk> tracked);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    // The first session; throws Error. Then it goes on by itself.
    Task<> start();
    bool failed() const { return failed_; }
    const std::string& error() const { return error_; }
    // The destination's process that the source knows; 0: none.
    uint64_t known_instance() const { return known_instance_; }
    void cut() { cut_ = true; }
    // From now on nothing of it comes through, and nobody is told.
    void fall_silent() { silent_ = true; }

private:
    struct Region;

    Task<> keep_up();
    Task<> open_session();
    Task<> greet(ConnectionPtr connection, std::optional<Lsn> base);
    void close_session();
    Task<> link(ConnectionPtr connection, bool flushes);
    Task<> capture(std::shared_ptr<Region> region, Source::Capture found);
    Task<> hole(std::shared_ptr<Region> region, Extent range);
    Task<> compare();
    Task<> compare_block(uint64_t block, Source::Question asked, Content there);
    bool capture_step(std::shared_ptr<Region>& region);
    void send(const ConnectionPtr& connection, Frame& frame);
    void send_flush(Connection& connection);
    bool take_reply(Connection& connection);
    void post(Connection& connection, Message message);
    // As far as the source can tell.
    bool lost(const Connection& connection) const;
    void give_up(const std::string& why);

    World& world_;
    Disk& here_;
    Disk& there_;
    std::shared_ptr<TrackedDisk> tracked_;
    Source& source_;
    Scheduler::Owner owner_, links_owner_ = 0;
    std::vector<ConnectionPtr> connections_;
    unsigned live_ = 0; // links and captures of the present session
    bool cut_ = false, silent_ = false, failed_ = false;
    std::string error_;
    uint64_t known_instance_ = 0;
};

} // namespace drover::sim
