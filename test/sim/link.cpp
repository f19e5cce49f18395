// SPDX-License-Identifier: GPL-2.0-or-later
// Links: what link.cpp does on each connection of a session.
#include "nbd-proxy/zero_scan.h"
#include "test/sim/plugin.h"
#include "test/sim/replica.h"

namespace drover::sim {
namespace {

constexpr size_t table_bytes = 8 * KiB;
constexpr size_t captures_ahead = 3;
constexpr uint64_t silence_limit = 8000;

} // namespace

struct Stream::Region {
    Region(Source& its_source, Extent where)
        : source(its_source), extent(where), cursor(where.offset) {}
    ~Region() { source.release_region(extent); }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    Source& source;
    const Extent extent;
    uint64_t cursor;
    unsigned under_way = 0;
};

bool Stream::lost(const Connection& connection) const {
    if (!connection.served && !world_.plan.plain && !silent_ && world_.reachable(there_.site)) {
        return true;
    }
    return connection.in_flight > 0 && world_.now() > connection.heard + silence_limit;
}

// --- sending

void Stream::post(Connection& connection, Message message) {
    const uint64_t last = connection.wire.empty() ? 0 : connection.wire.back().arrival;
    message.arrival = silent_ ? Scheduler::never : std::max(last, world_.arrival());
    connection.wire.push_back(std::move(message));
}

void Stream::send(const ConnectionPtr& connection, Frame& frame) {
    if (frame.buffer.memory == nullptr) {
        frame.put_together(tracked_->buffer(frame.data_length));
    }
    if (connection->in_flight++ == 0) {
        connection->heard = world_.now();
    }
    if (world_.plan.plain) {
        serve_plain(world_, there_, connection, frame);
        return;
    }
    const FrameHeader header = source_.header_of(frame);
    const size_t prefix = frame_prefix_size(frame.ops.size());
    Message message;
    message.bytes.resize(prefix + frame.data_length);
    message.frame = &frame;
    message.durable = frame.durable;
    std::memcpy(message.bytes.data() + prefix, frame.buffer.data(), frame.data_length);
    encode_frame(message.bytes, header, frame.ops);
    world_.trace("{}: frame [{}, {}) after {} sent",
                 here_.name(),
                 frame.first.v,
                 frame.next.v,
                 header.after.v);
    for (const Op& op : frame.ops) {
        world_.trace(
            "    op {} {}+{}", static_cast<int>(op.type), op.where.offset, op.where.length);
    }
    post(*connection, std::move(message));
}

void Stream::send_flush(Connection& connection) {
    Message flush;
    flush.flush = true;
    flush.flushed = source_.applied();
    if (connection.in_flight++ == 0) {
        connection.heard = world_.now();
    }
    post(connection, std::move(flush));
}

// Replies come in any order.
bool Stream::take_reply(Connection& connection) {
    if (silent_ || world_.partitioned) {
        return false;
    }
    std::vector<std::list<Reply>::iterator> there;
    for (auto it = connection.replies.begin(); it != connection.replies.end(); ++it) {
        if (it->arrival <= world_.now()) {
            there.push_back(it);
        }
    }
    if (there.empty()) {
        return false;
    }
    const auto it = there[world_.random.below(there.size())];
    const Reply reply = *it;
    connection.replies.erase(it);
    --connection.in_flight;
    connection.heard = world_.now();
    if (reply.error == ESHUTDOWN) {
        cut_ = true;
    } else if (reply.error == EINVAL) {
        world_.fail("a frame was refused: " + reply.why);
    } else if (reply.error != 0) {
        give_up(reply.why);
    } else if (reply.frame != nullptr) {
        source_.acknowledged(reply.frame);
    } else {
        source_.made_durable(reply.flushed);
    }
    return true;
}

// --- captures

// Starts at most one. False: nothing to capture now.
bool Stream::capture_step(std::shared_ptr<Region>& region) {
    const Source::Limits& limits = source_.limits();
    if (source_.queued_bytes() >= limits.frame_bytes || source_.queued_ops() >= 16) {
        return false;
    }
    if (!region) {
        const auto claimed = source_.claim_region();
        if (!claimed) {
            return false;
        }
        region = std::make_shared<Region>(source_, *claimed);
    }
    if (region->under_way >= captures_ahead) {
        return false;
    }
    const auto dirty = source_.next_dirty(region->cursor, region->extent.end());
    if (!dirty) {
        if (region->under_way == 0) {
            region.reset();
        }
        return false;
    }
    region->cursor = *dirty;
    const BlockGeometry& geometry = source_.geometry();
    const Extent block = geometry.bytes_of(geometry.block_of(*dirty), 1);
    if (here_.image->hole(block)) {
        uint64_t end = block.end();
        while (end < region->extent.end()) {
            const Extent next = geometry.bytes_of(geometry.block_of(end), 1);
            if (!here_.image->hole(next)) {
                break;
            }
            end = next.end();
        }
        // One at a time, as a link does it: it waits for the range.
        region->cursor = end;
        ++region->under_way;
        const Extent range{block.offset, end - block.offset};
        world_.spawn(links_owner_, hole(region, range));
        return true;
    }
    Source::Capture found = source_.begin_capture(*dirty, region->extent.end(), limits.frame_bytes);
    region->cursor = found.lock_range.end();
    if (found.parts.empty()) {
        return true;
    }
    ++region->under_way;
    world_.spawn(links_owner_, capture(region, std::move(found)));
    return true;
}

Task<> Stream::hole(std::shared_ptr<Region> region, Extent range) {
    {
        const TrackedDisk::Range held(world_, *tracked_, range);
        const auto granted = [&] { return held.granted(); };
        co_await world_.until(granted);
        co_await world_.turn();
        if (here_.image->hole(range) || world_.breaks(Rule::look_up_holes_again)) {
            source_.commit_hole(range, world_.now());
            world_.hit(Probe::hole);
            world_.trace("{}: hole {}+{} captured", here_.name(), range.offset, range.length);
        } else {
            region->cursor = std::min(region->cursor, range.offset);
            world_.hit(Probe::hole_written);
        }
        co_await world_.turn();
    }
    --region->under_way;
}

Task<> Stream::capture(std::shared_ptr<Region> region, Source::Capture found) {
    // Read in two halves, as the guests write.
    const Content& disk = here_.image->now();
    Extent range = found.range();
    FrameBuffer buffer = tracked_->buffer(range.length);
    const uint64_t middle = world_.random.below(range.length + 1);
    std::memcpy(buffer.data(), &disk[range.offset], middle);
    co_await world_.turn();
    std::memcpy(buffer.data() + middle, &disk[range.offset] + middle, range.length - middle);
    co_await world_.turn();
    if (world_.random.rarely(world_.plan.bad_writes) && !world_.faults_over) {
        give_up("the disk here can't be read");
        co_return;
    }
    std::vector<Op> ops = pack_ops(buffer.data(), found.parts, table_bytes);
    {
        std::optional<TrackedDisk::Range> held;
        if (!world_.breaks(Rule::commit_with_the_range)) {
            held.emplace(world_, *tracked_, found.lock_range);
            const auto granted = [&] { return held->granted(); };
            co_await world_.until(granted);
        }
        if (!source_.unchanged(found) && !world_.breaks(Rule::look_at_versions)) {
            world_.hit(Probe::captured_again);
            source_.refresh(found);
            ops.clear();
            if (!found.parts.empty()) {
                range = found.range();
                buffer = tracked_->buffer(range.length);
                std::memcpy(buffer.data(), &disk[range.offset], range.length);
                co_await world_.turn();
                ops = pack_ops(buffer.data(), found.parts, table_bytes);
            }
        }
        co_await world_.turn();
        world_.trace(
            "{}: captured {} blocks at {}", here_.name(), found.blocks, found.lock_range.offset);
        source_.commit_capture(found, std::move(ops), std::move(buffer), world_.now());
    }
    source_.settle(world_.now());
    --region->under_way;
}

// --- what is there already

Task<> Stream::compare() {
    const std::weak_ptr<Plugin> process = there_.plugin;
    const auto answers = [&] {
        return !world_.partitioned && !silent_ && there_.plugin != nullptr &&
               there_.plugin == process.lock();
    };
    // In doubt what is dirty is sent, beside it.
    const bool beside = world_.random.chance(30);
    if (beside) {
        source_.compared_to(source_.geometry().disk_size);
    }
    Source::Question asked;
    for (uint64_t next = 0;; next = asked.first_block + asked.blocks) {
        asked = source_.next_question(next, world_.random.between(1, beside ? 16 : 4));
        if (asked.blocks == 0) {
            break;
        }
        co_await world_.pause(world_.arrival() - world_.now());
        std::vector<Content> there;
        for (uint64_t i = 0; i < asked.blocks; ++i) {
            const Extent bytes = source_.geometry().bytes_of(asked.first_block + i, 1);
            Content content(bytes.length);
            const uint64_t middle = world_.random.below(bytes.length + 1);
            co_await world_.until(answers);
            std::memcpy(content.data(), &there_.image->now()[bytes.offset], middle);
            co_await world_.turn();
            co_await world_.until(answers);
            std::memcpy(content.data() + middle,
                        &there_.image->now()[bytes.offset] + middle,
                        bytes.length - middle);
            there.push_back(std::move(content));
        }
        co_await world_.pause(world_.arrival() - world_.now() +
                              (beside ? world_.random.below(2000) : 0));
        for (uint64_t i = 0; i < asked.blocks; ++i) {
            co_await compare_block(asked.first_block + i, asked, std::move(there[i]));
        }
        source_.compared_to(source_.geometry().bytes_of(asked.first_block, asked.blocks).end());
    }
    source_.compared_to(source_.geometry().disk_size);
}

Task<> Stream::compare_block(uint64_t block, Source::Question asked, Content there) {
    const Source::Capture same = source_.begin_compare(block, 1);
    const Extent bytes = same.lock_range;
    const Content& disk = here_.image->now();
    Content here(bytes.length);
    const uint64_t middle = world_.random.below(bytes.length + 1);
    std::memcpy(here.data(), &disk[bytes.offset], middle);
    co_await world_.turn();
    std::memcpy(here.data() + middle, &disk[bytes.offset] + middle, bytes.length - middle);
    if (here != there) {
        co_return;
    }
    co_await world_.turn();
    const TrackedDisk::Range held(world_, *tracked_, bytes);
    const auto granted = [&] { return held.granted(); };
    co_await world_.until(granted);
    co_await world_.turn();
    world_.hit(source_.commit_same(same, asked) == 1 ? Probe::same : Probe::same_no_more);
    world_.trace("{}: block {} is there", here_.name(), block);
    co_await world_.turn();
}

// --- the loop

Task<> Stream::link(ConnectionPtr connection, bool flushes) {
    std::shared_ptr<Region> region;
    Frame* waiting = nullptr;
    const unsigned window = world_.plan.window;
    for (;;) {
        bool busy = true;
        const uint64_t what = world_.random.below(8);
        if (what < 2) {
            busy = take_reply(*connection);
        } else if (what < 5 && connection->in_flight < window) {
            Frame* const frame = waiting != nullptr ? waiting : source_.next_frame();
            waiting = nullptr;
            if (frame == nullptr) {
                busy = false;
            } else if (world_.plan.plain && frame->after > source_.applied()) {
                waiting = frame;
                world_.hit(Probe::plain_waited);
            } else {
                send(connection, *frame);
            }
        } else if (what < 7) {
            busy = capture_step(region);
        } else if (flushes && !world_.plan.plain && world_.random.chance(10) &&
                   connection->in_flight < window) {
            send_flush(*connection);
        }
        if (busy) {
            co_await world_.turn();
        } else {
            co_await world_.pause(world_.random.below(8));
        }
    }
}

} // namespace drover::sim
