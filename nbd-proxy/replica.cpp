// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/replica.h"

#include "common/error.h"
#include "common/test_steps.h"
#include "nbd-proxy/frame_codec.h"

#include <algorithm>

namespace drover {
namespace {

[[noreturn]] void refuse(const std::string& why) {
    throw Error(ErrorKind::refused, "frame refused: " + why, EINVAL);
}

[[noreturn]] void shut() {
    throw Error(ErrorKind::state, "the replica takes no frames any more", ESHUTDOWN);
}

// Each of nbdkit's threads has a decoder and room for what it expands.
std::span<const std::byte> expand(const DecodedFrame& frame) {
    if (frame.raw_length == 0) {
        return frame.data;
    }
    thread_local FrameDecoder decoder;
    thread_local std::vector<std::byte> room;
    room.resize(std::max<size_t>(room.size(), frame.raw_length));
    const std::span raw(room.data(), frame.raw_length);
    if (!decoder.decode(frame.data, raw)) {
        refuse("its compressed data is damaged");
    }
    return raw;
}

const char* name_of(OpType type) {
    switch (type) {
    case OpType::write:
        return "write";
    case OpType::zero:
        return "zero";
    case OpType::trim:
        return "trim";
    case OpType::flush:
        return "flush";
    case OpType::fill:
        return "fill";
    case OpType::consistent:
        return "consistent";
    case OpType::inconsistent:
        return "inconsistent";
    case OpType::handover:
        return "handover";
    case OpType::void_:
        return "void";
    }
    return "";
}

// moment: "frame", which has come, or "applied", and is not answered yet.
void stop_for_test(const char* moment, const DecodedFrame& frame) {
    if (!has_test_steps()) {
        return;
    }
    if (frame.header.open) {
        drover::stop_for_test(fmt::format("{}.open", moment));
    }
    for (const Op& op : frame.ops) {
        drover::stop_for_test(fmt::format("{}.{}", moment, name_of(op.type)));
    }
}

} // namespace

Replica::Replica(Backend& image,
                 const ReplicaIdentity& identity,
                 ReplicaEvents events,
                 ClientGone gone)
    : image_(image), identity_(identity), events_(std::move(events)), client_gone_(std::move(gone)),
      applier_(identity.migration, identity.generation, identity.largest) {}

void Replica::open_session(const FrameHeader& header) {
    const std::lock_guard one(session_mutex_);
    Applier::Opened opened;
    {
        const std::lock_guard lock(mutex_);
        if (closed_) {
            shut();
        }
        opened = applier_.open(header);
        ++openings_;
        failure_ = opened.newer ? 0 : failure_;
        moved_.notify_all(); // frames of the older session give up
    }
    if (!opened.ok) {
        refuse(opened.why);
    }
    if (opened.newer) {
        events_.session(header.stream);
    }
    if (header.base) {
        events_.base(*header.base);
    }
}

void Replica::apply(std::span<const std::byte> bytes, bool fua) {
    received_bytes_ += bytes.size();
    std::string why;
    auto frame = decode_frame(bytes, image_.size(), &why);
    if (!frame) {
        refuse(why);
    }
    frame->data = expand(*frame);
    if (std::any_of(frame->ops.begin(), frame->ops.end(), [](const Op& op) {
            return op.type == OpType::fill;
        })) {
        refuse("a fill, and this disk is not post-copied");
    }
    const FrameHeader& header = frame->header;
    stop_for_test("frame", *frame);
    if (header.open) {
        open_session(header);
        stop_for_test("applied", *frame);
        return;
    }
    {
        std::unique_lock lock(mutex_);
        for (;;) {
            if (closed_) {
                shut();
            }
            const Applier::Admission admission = applier_.admit(header, &why);
            if (admission == Applier::Admission::refused) {
                if (failure_ != 0 && header.stream == applier_.stream()) {
                    // Whichever answer comes first has to say what went wrong.
                    throw Error(ErrorKind::io, "frame not applied: " + why, failure_);
                }
                refuse(why);
            }
            if (admission == Applier::Admission::apply) {
                break;
            }
            wait(lock);
        }
        applier_.started(header);
    }
    const auto failed = [&](int error) {
        // What it did of the frame is there, so the image is no prefix of anything any more.
        try {
            events_.consistency(false);
        } catch (...) {
            // The state directory is on the same disk; the process's end takes the mark back too.
        }
        const std::lock_guard lock(mutex_);
        applier_.failed(header);
        if (failure_ == 0 && header.stream == applier_.stream()) {
            failure_ = error != 0 ? error : EIO;
        }
        moved_.notify_all();
    };
    try {
        run(*frame);
    } catch (const Error& error) {
        failed(error.sys_errno());
        throw;
    } catch (...) {
        failed(EIO);
        throw;
    }
    const Lsn last(header.next.v - 1);
    {
        std::unique_lock lock(mutex_);
        applier_.finished(header);
        moved_.notify_all();
        if (fua) {
            while (!closed_ && applier_.stream() == header.stream && failure_ == 0 &&
                   applier_.applied() < last) {
                wait(lock);
            }
            if (closed_) {
                shut();
            }
            if (applier_.stream() != header.stream) {
                refuse("its session has ended");
            }
            if (applier_.applied() < last) {
                throw Error(ErrorKind::io, "a frame before this one was not applied", failure_);
            }
        }
    }
    if (fua) {
        make_durable(last);
    }
    stop_for_test("applied", *frame);
}

// Operations in order. A mark that the record keeps stands for everything before it, so that is
// made durable first.
void Replica::run(const DecodedFrame& frame) {
    const std::byte* data = frame.data.data();
    Lsn lsn = frame.header.first;
    for (const Op& op : frame.ops) {
        switch (op.type) {
        case OpType::write:
            image_.write(data, op.where, false);
            break;
        case OpType::zero:
            image_.zero(op.where, false, false, false);
            break;
        case OpType::trim:
            image_.zero(op.where, true, false, false);
            break;
        case OpType::flush:
            break; // order is kept by the stream; the disk's own cache is flushed when the source
                   // asks
        case OpType::fill:
            break; // apply() has refused it
        case OpType::consistent:
            image_.flush();
            events_.consistency(true);
            break;
        case OpType::inconsistent:
            events_.consistency(false);
            break;
        case OpType::handover: {
            image_.flush();
            TokenHash hash;
            std::memcpy(hash.data(), data, hash.size());
            events_.handover(lsn, hash);
            break;
        }
        case OpType::void_:
            events_.voided();
            break;
        }
        data += has_data(op.type) ? op.where.length : 0;
        ++lsn.v;
    }
}

void Replica::make_durable(Lsn up_to) {
    Lsn applied;
    uint64_t openings = 0;
    {
        const std::lock_guard lock(mutex_);
        if (closed_) {
            shut(); // the image may be its owner's by now
        }
        if (applier_.durable() >= up_to) {
            return;
        }
        applied = applier_.applied();
        openings = openings_;
        ++flushing_;
    }
    std::exception_ptr failed;
    try {
        image_.flush();
    } catch (...) {
        failed = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    --flushing_;
    moved_.notify_all();
    if (failed) {
        std::rethrow_exception(failed);
    }
    // Above the base of a session that was opened meanwhile, what was flushed is applied again.
    if (openings == openings_) {
        applier_.made_durable(applied);
    }
}

// For something to move. nbdkit, told to end, waits for those who wait here, and reads nothing any
// more that could wake them.
void Replica::wait(std::unique_lock<std::mutex>& lock) {
    constexpr std::chrono::seconds look_interval{1};
    if (moved_.wait_for(lock, look_interval) == std::cv_status::timeout) {
        end_if_gone(client_gone_);
    }
}

void Replica::flush() {
    make_durable(Lsn(~uint64_t{0}));
}

std::array<std::byte, state_size> Replica::state() {
    std::unique_lock lock(mutex_);
    while (!closed_ && applier_.older_applying()) {
        wait(lock);
    }
    ReplicaState state;
    state.uuid = identity_.uuid;
    state.boot = identity_.boot;
    state.instance = identity_.instance;
    state.migration = identity_.migration;
    state.size = image_.size();
    state.block_size = identity_.block_size;
    state.generation = identity_.generation;
    state.stream = applier_.stream();
    state.applied = applier_.applied();
    state.durable = std::min(applier_.durable(), applier_.applied());
    return encode_state(state);
}

void Replica::close() {
    const std::lock_guard one(session_mutex_);
    std::unique_lock lock(mutex_);
    closed_ = true;
    moved_.notify_all();
    moved_.wait(lock, [&] { return !applier_.anything_applying() && flushing_ == 0; });
}

Replica::Progress Replica::progress() {
    const std::lock_guard lock(mutex_);
    return {applier_.applied(), applier_.durable(), received_bytes_};
}

} // namespace drover
