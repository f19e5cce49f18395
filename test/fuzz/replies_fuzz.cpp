// SPDX-License-Identifier: GPL-2.0-or-later
// A destination whose `state` says anything, and that answers frames in any order or never, against
// the source of a stream: what the source sends stays within the disk and in order, what it
// believes stays within what it has sent, and with an honest destination it ends in sync. The input
// is a list of events, a byte each and what they need behind it.
#include "nbd-proxy/core/source.h"
#include "test/fuzz/check.h"

#include <algorithm>

using namespace drover;

namespace {

constexpr uint64_t block = 4 * KiB;
constexpr uint64_t disk_size = 13 * block + 512;

class Input {
public:
    Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
    bool empty() const { return left_ == 0; }
    // Zeroes behind the end.
    template <typename T>
    T take() {
        T value{};
        const size_t length = std::min(sizeof value, left_);
        std::memcpy(&value, data_, length);
        data_ += length;
        left_ -= length;
        return value;
    }
    Extent range() {
        const uint64_t offset = take<uint16_t>() % disk_size;
        return {offset, 1 + take<uint16_t>() % (disk_size - offset)};
    }

private:
    const uint8_t* data_;
    size_t left_;
};

class Course {
public:
    Course() { source_.start({}, {1, 1, 0}); }

    void event(Input& in) {
        switch (in.take<uint8_t>() % 10) {
        case 0:
            write(in.range());
            break;
        case 1:
            change(in.range(),
                   [&](Extent where) { source_.zero_done(where, OpType::trim, ++now_us_); });
            break;
        case 2:
            change(in.range(), [&](Extent where) { source_.spoiled(where); });
            break;
        case 3:
            source_.flush_done(++now_us_);
            break;
        case 4:
            capture();
            break;
        case 5:
            send();
            break;
        case 6:
            answer(in.take<uint8_t>());
            break;
        case 7:
            source_.begin_handover({});
            source_.settle(++now_us_);
            break;
        case 8:
            source_.cancel_handover();
            break;
        case 9:
            reconnect(in);
            break;
        }
        const Source::Progress progress = source_.progress();
        FUZZ_CHECK(progress.durable <= progress.applied && progress.applied <= progress.last);
        FUZZ_CHECK(progress.dirty_bytes <= 14 * block);
    }

    // From here on it is told the truth.
    void end() {
        source_.cancel_handover();
        for (int turns = 0; !source_.in_sync(); ++turns) {
            FUZZ_CHECK(turns < 1000);
            while (capture()) {
            }
            source_.settle(++now_us_);
            while (send()) {
            }
            while (!sent_.empty()) {
                answer(0);
            }
        }
    }

private:
    void write(Extent where) {
        change(where, [&](Extent range) {
            const auto bytes = std::make_shared<std::byte[]>(range.length);
            const Bytes data(bytes, bytes.get());
            source_.write_done(range, source_.wants_data(range) ? data : nullptr, ++now_us_);
        });
    }

    template <typename Body>
    void change(Extent where, Body&& body) {
        const RangeLock::Ticket held = source_.locks().acquire(where);
        FUZZ_CHECK(held->granted);
        body(where);
        std::vector<void*> granted;
        source_.locks().release(held, granted);
        source_.settle(++now_us_);
    }

    bool capture() {
        const auto at = source_.next_dirty(0, disk_size);
        if (!at) {
            return false;
        }
        const Source::Capture capture = source_.begin_capture(*at, disk_size, 3 * block);
        change(capture.lock_range, [&](Extent) {
            std::vector<Op> ops;
            uint64_t length = 0;
            for (const Extent& part : capture.parts) {
                FUZZ_CHECK(part.end() <= disk_size);
                ops.push_back({OpType::write, part});
                length += part.length;
            }
            const auto memory = std::make_shared<std::byte[]>(length);
            source_.commit_capture(capture, ops, {{memory, memory.get()}, 0, length}, ++now_us_);
        });
        return true;
    }

    bool send() {
        Frame* const frame = source_.next_frame();
        if (frame == nullptr) {
            return false;
        }
        FUZZ_CHECK(frame->first == next_ && frame->next.v == next_.v + frame->ops.size());
        FUZZ_CHECK(frame->after < frame->first && frame->next.v <= source_.progress().last.v + 1);
        uint64_t length = 0;
        for (const Op& op : frame->ops) {
            FUZZ_CHECK(is_mark(op.type) || op.where.end() <= disk_size);
            length += has_data(op.type) ? op.where.length : 0;
        }
        FUZZ_CHECK(length == frame->data_length);
        next_ = frame->next;
        sent_.push_back(frame);
        return true;
    }

    void answer(uint8_t which) {
        if (!sent_.empty()) {
            const auto it = sent_.begin() + which % ptrdiff_t(sent_.size());
            Frame* const frame = *it;
            sent_.erase(it);
            source_.acknowledged(frame);
        }
    }

    void reconnect(Input& in) {
        ReplicaState state;
        state.applied = Lsn(in.take<uint8_t>() % 2 == 0 ? in.take<uint8_t>() : in.take<uint64_t>());
        state.durable = Lsn(in.take<uint8_t>() % 2 == 0 ? in.take<uint8_t>() : in.take<uint64_t>());
        std::string why;
        const auto said = decode_state(encode_state(state), &why);
        FUZZ_CHECK(said.has_value() == (state.durable <= state.applied));
        if (!said) {
            return;
        }
        source_.begin_session(source_.stream().session + 1);
        const Lsn base = source_.resume(said->applied, said->durable, in.take<uint8_t>() % 2 == 0);
        FUZZ_CHECK(base <= source_.progress().last);
        next_ = Lsn(base.v + 1);
        sent_.clear();
    }

    Source source_{{disk_size, block}, 512, Source::Limits{.log_bytes = 32 * KiB}};
    std::vector<Frame*> sent_; // in this session, and not answered
    Lsn next_ = Lsn(1);
    uint64_t now_us_ = 0;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input in(data, std::min<size_t>(size, 4096));
    Course course;
    while (!in.empty()) {
        course.event(in);
    }
    course.end();
    return 0;
}
