// SPDX-License-Identifier: GPL-2.0-or-later
// Any NBD server: it knows no frames, and does what it is asked side by side, in any order.
#include "test/sim/replica.h"

namespace drover::sim {
namespace {

Task<> one(Disk& disk, Op op, std::vector<std::byte> data, std::shared_ptr<unsigned> left) {
    if (op.type == OpType::write) {
        co_await disk.write(op.where, data.data());
    } else {
        co_await disk.zero(op.where, op.type == OpType::trim);
    }
    --*left;
}

Task<> answer(World& world,
              Disk& disk,
              ConnectionPtr connection,
              Frame* frame,
              bool flushes,
              std::shared_ptr<unsigned> left) {
    // Everything before it is applied: the frame comes after the LSN just before it.
    if (flushes) {
        co_await disk.sync();
    }
    const auto done = [&] { return *left == 0; };
    co_await world.until(done);
    Reply reply{frame};
    reply.arrival = world.arrival();
    connection->replies.push_back(reply);
}

} // namespace

void serve_plain(World& world, Disk& disk, const ConnectionPtr& connection, Frame& frame) {
    const std::byte* data = frame.buffer.memory ? frame.buffer.data() : nullptr;
    const auto left = std::make_shared<unsigned>(0);
    bool flushes = false;
    for (const Op& op : frame.ops) {
        const uint64_t length = has_data(op.type) ? op.where.length : 0;
        if (!is_mark(op.type)) {
            ++*left;
            world.spawn(world.plain_server,
                        one(disk, op, std::vector<std::byte>(data, data + length), left));
        }
        flushes = flushes || op.type == OpType::handover;
        data += length;
    }
    world.spawn(world.plain_server, answer(world, disk, connection, &frame, flushes, left));
}

} // namespace drover::sim
