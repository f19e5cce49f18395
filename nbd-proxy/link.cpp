// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/link.h"

#include "common/error.h"
#include "nbd-proxy/zero_scan.h"

#include <cstring>
#include <thread>

#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

namespace drover {
namespace {

constexpr unsigned reads_ahead = 4;
constexpr uint64_t flush_interval_us = 2'000'000;
constexpr uint64_t goodbye_us = 2'000'000; // for the answers that are still to come
// Longer than any one fsync there takes, with that interval. A process that is stopped, or a disk
// that hangs, keeps its sockets.
constexpr uint64_t silence_limit_us = 60'000'000;
// Small requests cost the far side more than their bytes: what one counts for in the window at
// least.
constexpr uint64_t least_cost = 4 * KiB;
constexpr size_t zero_ops_ahead = 256;
constexpr uint64_t hole_limit = GiB; // of one operation, while the whole disk is looked through
constexpr uint64_t plain_zero_limit = GiB;

// A turn of the copy, and the rest after it while the guest has requests.
constexpr uint64_t shortest_turn_us = 500;
constexpr uint64_t longest_rest_us = 10'000;

[[noreturn]] void lost(const std::string& why) {
    throw Error(ErrorKind::peer, "the link to the destination was lost: " + why, ENOTCONN);
}

[[noreturn]] void refused(int error) {
    const std::string what = error == ENOSPC ? "the destination's disk is full"
                             : error == EINVAL
                                 ? "the destination refused a frame (its log says why)"
                                 : "the destination's disk failed";
    throw Error(ErrorKind::peer, fmt::format("{}: {}", what, std::strerror(error)), error);
}

} // namespace

// --- Pacer

void Pacer::set_rate(uint64_t bytes_per_s) {
    const std::lock_guard lock(mutex_);
    rate_ = bytes_per_s;
    free_at_us_ = 0;
}

uint64_t Pacer::rate() const {
    const std::lock_guard lock(mutex_);
    return rate_;
}

uint64_t Pacer::wait_us(uint64_t now_us) {
    const std::lock_guard lock(mutex_);
    constexpr uint64_t burst_us = 10'000;
    return rate_ == 0 || free_at_us_ <= now_us + burst_us ? 0 : free_at_us_ - now_us - burst_us;
}

void Pacer::sent(uint64_t bytes, uint64_t now_us) {
    const std::lock_guard lock(mutex_);
    if (rate_ != 0) {
        free_at_us_ = std::max(free_at_us_, now_us) + bytes * 1'000'000 / rate_;
    }
}

// --- GiveWay

std::chrono::microseconds GiveWay::rest(uint64_t guest_requests) {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    const auto us = [](const timeval& time) {
        return static_cast<uint64_t>(time.tv_sec) * 1'000'000 + static_cast<uint64_t>(time.tv_usec);
    };
    const uint64_t used_us = us(usage.ru_utime) + us(usage.ru_stime);
    const uint64_t spent_us = used_us - used_us_;
    if (spent_us < shortest_turn_us) {
        return {};
    }
    const bool busy = guest_requests != requests_;
    requests_ = guest_requests;
    used_us_ = used_us;
    return std::chrono::microseconds(busy ? std::min(spent_us, longest_rest_us) : 0);
}

// --- Link

Link::Link(StreamContext& context, NbdHandle handle, bool flushes)
    : context_(context), tracked_(context.tracked), handle_(std::move(handle)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      window_(2 * (context.buffers->capacity() + BufferPool::headroom), context.window_ceiling),
      flushes_(flushes), scanning_(flushes && context.disk.features().can_extents) {
    if (!wake_) {
        throw_errno("eventfd");
    }
    if (context_.disk.ring_fd() >= 0) {
        try {
            ring_.emplace(2 * reads_ahead, context_.buffers->memory());
        } catch (const Error&) {
            // Containers' seccomp profiles forbid io_uring as a rule: then plain reads.
        }
    }
}

Link::~Link() {
    if (context_.compressor) {
        context_.compressor->forget(this);
    }
    // Requests live until libnbd is done with them, reads until the kernel is: both end here, in
    // this order.
    handle_.reset();
    ring_.reset();
    drop_region();
}

void Link::wake() {
    if (sleeping_.exchange(false)) {
        eventfd_write(wake_.get(), 1);
    }
}

Link::TcpFacts Link::tcp() const {
    tcp_info info{};
    socklen_t length = sizeof info;
    if (getsockopt(nbd_aio_get_fd(handle_.get()), IPPROTO_TCP, TCP_INFO, &info, &length) < 0) {
        return {};
    }
    return {info.tcpi_segs_out, info.tcpi_total_retrans, info.tcpi_min_rtt};
}

void Link::run() {
    next_flush_us_ = monotonic_us() + flush_interval_us;
    while (!context_.stop) {
        // Set before looking for work: a wake that comes after the look is not lost.
        sleeping_ = true;
        finish_requests();
        bool busy = finish_reads();
        busy |= send_frames();
        const bool copied = capture_some();
        busy |= copied;
        // What the guest writes does not rest: its lag would grow. And a guest that is made to wait
        // for the copy has no use of that resting.
        if (const auto rest = give_way_.rest(tracked_.guest_requests());
            copied && rest.count() > 0 && !tracked_.throttling()) {
            std::this_thread::sleep_for(rest);
        }
        const uint64_t now_us = monotonic_us();
        flush_if_due(now_us);
        const uint64_t pause_us = context_.pacer.wait_us(now_us);
        wait_for_events(busy && pause_us == 0 ? 0 : std::clamp<uint64_t>(pause_us, 1000, 100'000));
        if (!connected()) {
            lost(libnbd_error());
        }
        if (!requests_.empty() && answered_ == 0 &&
            now_us > std::max(heard_us_, requests_.front().sent_us) + silence_limit_us) {
            lost(fmt::format("no answer for {} s", silence_limit_us / 1'000'000));
        }
    }
}

// nbdkit 1.32 aborts when several of its threads find that they cannot answer a client that has
// gone.
void Link::take_answers() {
    const uint64_t give_up_us = monotonic_us() + goodbye_us;
    while (!requests_.empty() && connected()) {
        const uint64_t now_us = monotonic_us();
        if (now_us >= give_up_us) {
            return;
        }
        wait_for_events(give_up_us - now_us);
        try {
            finish_requests();
        } catch (const std::exception&) {
            // Why the session ends is known already.
        }
    }
}

void Link::wait_for_events(uint64_t timeout_us) {
    nbd_handle* const h = handle_.get();
    const unsigned direction = nbd_aio_get_direction(h);
    const bool reads = (direction & LIBNBD_AIO_DIRECTION_READ) != 0;
    const bool writes = (direction & LIBNBD_AIO_DIRECTION_WRITE) != 0;
    pollfd fds[] = {
        {.fd = nbd_aio_get_fd(h),
         .events = static_cast<short>((reads ? POLLIN : 0) | (writes ? POLLOUT : 0))},
        {.fd = wake_.get(), .events = POLLIN},
        {.fd = ring_ ? ring_->event_fd() : -1, .events = POLLIN},
    };
    const timespec timeout{static_cast<time_t>(timeout_us / 1'000'000),
                           static_cast<long>(timeout_us % 1'000'000 * 1000)};
    const int ready = ppoll(fds, 3, &timeout, nullptr);
    sleeping_ = false;
    if (ready <= 0) {
        return;
    }
    if (fds[1].revents != 0) {
        eventfd_t count = 0;
        eventfd_read(wake_.get(), &count);
    }
    constexpr short broken = POLLHUP | POLLERR | POLLNVAL;
    const short events = fds[0].revents;
    if (reads && (events & (POLLIN | broken)) != 0) {
        nbd_aio_notify_read(h);
    } else if (writes && (events & (POLLOUT | broken)) != 0) {
        nbd_aio_notify_write(h);
    }
}

// --- sending

int Link::answered(void* data, int* error) noexcept {
    auto* const request = static_cast<Request*>(data);
    request->error = request->error != 0 ? request->error : *error;
    if (--request->parts == 0) {
        ++request->link->answered_;
    }
    return 1; // libnbd may forget the command
}

void Link::submit(int64_t cookie) {
    if (cookie < 0) {
        lost(libnbd_error());
    }
}

// As many as the compressor wants to have, else one at a time.
void Link::take_frames() {
    const size_t wanted = context_.compressor ? context_.compressor->depth() : 1;
    while (next_.size() < wanted) {
        Frame* frame = nullptr;
        {
            const std::lock_guard lock(tracked_.mutex);
            frame = tracked_.source.next_frame();
        }
        if (frame == nullptr) {
            return;
        }
        // Outside of the mutex: until it is acknowledged the frame is this link's.
        if (frame->buffer.memory == nullptr) {
            frame->put_together(context_.buffers->take(frame->data_length));
        }
        Compressor::Job& job = next_.emplace_back();
        job.frame = frame;
        if (!context_.compressor) {
            job.done = true;
            continue;
        }
        job.owner = this;
        job.wake = [this] { wake(); };
        context_.compressor->submit(job, guess_.worth_trying());
    }
}

// Whether the first of next_ may be sent.
bool Link::next_is_due() {
    if (!next_.front().done) {
        context_.coding_late = true;
        return false;
    }
    if (context_.plain) {
        const std::lock_guard lock(tracked_.mutex);
        return next_.front().frame->after <= tracked_.source.applied();
    }
    return true;
}

bool Link::send_frames() {
    bool sent = false;
    window_.set_ceiling(context_.window_ceiling);
    if (context_.compressor && context_.compressor->depth() > 1) {
        take_frames(); // what is coded meanwhile is ready when there is room
    }
    for (;;) {
        if (!room() || (nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_WRITE) != 0 ||
            context_.pacer.wait_us(monotonic_us()) != 0) {
            context_.link_full = true;
            break;
        }
        take_frames();
        if (next_.empty() || !next_is_due()) {
            break;
        }
        const Compressor::Job& job = next_.front();
        if (job.tried) {
            guess_.tried(job.shrank);
        }
        Frame& frame = *job.frame;
        next_.pop_front();
        if (context_.plain) {
            send_plain(frame);
        } else {
            send(frame);
        }
        sent = true;
    }
    return sent;
}

void Link::send(Frame& frame) {
    const size_t prefix = frame_prefix_size(frame.ops.size());
    const bool coded = frame.coded_length != 0;
    const std::span whole(frame.buffer.data() - prefix,
                          prefix + (coded ? frame.coded_length : frame.data_length));
    FrameHeader header;
    {
        const std::lock_guard lock(tracked_.mutex);
        header = tracked_.source.header_of(frame);
    }
    encode_frame(whole, header, frame.ops, coded ? static_cast<uint32_t>(frame.data_length) : 0);
    const uint64_t now_us = monotonic_us();
    if (requests_.empty()) {
        window_.idle(now_us);
    }
    requests_.push_back({this, &frame, std::max<uint64_t>(whole.size(), least_cost), now_us});
    in_flight_ += requests_.back().bytes;
    context_.sent_bytes += whole.size();
    context_.pacer.sent(whole.size(), now_us);
    submit(nbd_aio_pwrite(handle_.get(),
                          whole.data(),
                          whole.size(),
                          frame.first.v,
                          {.callback = answered, .user_data = &requests_.back()},
                          frame.durable ? LIBNBD_CMD_FLAG_FUA : 0));
}

// The same operations as requests of a server that knows no frames; its turn has come, so they may
// run side by side with everything else that is under way, but not with each other where they
// overlap.
void Link::send_plain(Frame& frame) {
    nbd_handle* const h = handle_.get();
    const uint64_t now_us = monotonic_us();
    requests_.push_back({this, &frame, std::max<uint64_t>(frame.data_length, least_cost), now_us});
    Request& request = requests_.back();
    in_flight_ += request.bytes;
    context_.sent_bytes += frame.data_length;
    context_.pacer.sent(frame.data_length, now_us);
    const nbd_completion_callback done{.callback = answered, .user_data = &request};
    const std::byte* data = frame.buffer.data();
    // Counted by `parts`, which starts at one so that it can't reach zero before all are submitted.
    for (const Op& op : frame.ops) {
        if (op.type == OpType::write) {
            ++request.parts;
            submit(nbd_aio_pwrite(h, data, op.where.length, op.where.offset, done, 0));
        } else if (op.type == OpType::zero || op.type == OpType::trim) {
            const uint32_t flags = op.type == OpType::zero ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
            for (uint64_t at = op.where.offset; at < op.where.end(); at += plain_zero_limit) {
                ++request.parts;
                submit(nbd_aio_zero(
                    h, std::min(plain_zero_limit, op.where.end() - at), at, done, flags));
            }
        } else if (op.type == OpType::handover && nbd_can_flush(h) > 0) {
            // Everything before it is applied: the frame comes after the LSN just before it.
            ++request.parts;
            submit(nbd_aio_flush(h, done, 0));
        }
        data += has_data(op.type) ? op.where.length : 0;
    }
    int no_error = 0;
    answered(&request, &no_error);
}

void Link::finish_requests() {
    if (answered_ == 0) {
        return;
    }
    answered_ = 0;
    const uint64_t now_us = monotonic_us();
    heard_us_ = now_us;
    int error = 0;
    bool nothing_left = false;
    {
        const std::lock_guard lock(tracked_.mutex);
        for (auto it = requests_.begin(); it != requests_.end();) {
            if (it->parts != 0) {
                ++it;
                continue;
            }
            error = error != 0 ? error : it->error;
            if (it->error == 0 && it->frame != nullptr) {
                window_.acknowledged(it->bytes, it->sent_us, now_us);
                context_.answered_bytes += it->bytes;
                tracked_.source.acknowledged(it->frame);
            } else if (it->error == 0) {
                tracked_.source.made_durable(it->flushed);
            }
            flush_under_way_ = flush_under_way_ && it->frame != nullptr;
            in_flight_ -= it->bytes;
            it = requests_.erase(it);
        }
        const Source::Progress progress = tracked_.source.progress();
        nothing_left = progress.in_sync && progress.dirty_bytes + progress.lag_bytes == 0;
        tracked_.changed.notify_all();
    }
    context_.acknowledged(nothing_left);
    if (error == ENOTCONN || error == ESHUTDOWN) {
        lost(connected() ? "it is being shut down" : libnbd_error());
    }
    if (error != 0) {
        refused(error);
    }
}

// Little by little, so that the flush of the handover, with the guest waiting, finds little to
// write.
void Link::flush_if_due(uint64_t now_us) {
    if (!flushes_ || flush_under_way_ || now_us < next_flush_us_) {
        return;
    }
    next_flush_us_ = now_us + flush_interval_us;
    Request flush{this, nullptr, 0, now_us};
    {
        const std::lock_guard lock(tracked_.mutex);
        flush.flushed = tracked_.source.applied();
        if (flush.flushed == tracked_.source.progress().durable) {
            return;
        }
        if (nbd_can_flush(handle_.get()) <= 0) {
            tracked_.source.made_durable(flush.flushed); // as far as that server goes
            return;
        }
    }
    flush_under_way_ = true;
    requests_.push_back(flush);
    submit(nbd_aio_flush(handle_.get(), {.callback = answered, .user_data = &requests_.back()}, 0));
}

// --- capture

void Link::drop_region() {
    if (region_) {
        const std::lock_guard lock(tracked_.mutex);
        tracked_.source.release_region(*region_);
        region_.reset();
    }
}

bool Link::capture_some() {
    if (scanning_) {
        return capture_holes();
    }
    bool busy = false;
    while (!context_.stop && room() && reads_.size() < reads_ahead &&
           context_.pacer.wait_us(monotonic_us()) == 0) {
        {
            const std::lock_guard lock(tracked_.mutex);
            // As late as possible: what waits in the queue may be written again meanwhile.
            if (tracked_.source.queued_bytes() >= context_.buffers->capacity() ||
                tracked_.source.queued_ops() >= zero_ops_ahead) {
                break;
            }
            if (!region_) {
                region_ = tracked_.source.claim_region();
                if (!region_) {
                    break;
                }
                cursor_ = region_->offset;
                known_ = {};
            }
            if (const auto dirty = tracked_.source.next_dirty(cursor_, region_->end())) {
                cursor_ = *dirty;
            } else {
                if (!reads_.empty()) {
                    break; // still dirty, on their way
                }
                tracked_.source.release_region(*region_);
                region_.reset();
                continue;
            }
        }
        busy = true;
        if (find_extent(cursor_, region_->end())) {
            continue;
        }
        Source::Capture capture;
        {
            const std::lock_guard lock(tracked_.mutex);
            capture = tracked_.source.begin_capture(cursor_,
                                                    std::min(known_.end(), region_->end()),
                                                    tracked_.source.limits().frame_bytes);
        }
        cursor_ = capture.lock_range.end();
        if (!capture.parts.empty()) {
            start_read(std::move(capture));
        }
        if (finish_reads()) {
            break; // send what was read while it is in the cache
        }
    }
    return busy;
}

// The holes of the whole disk come first: there is next to nothing to send for them, and from then
// on what is dirty is what there is to copy, for the time that it will take to be told.
bool Link::capture_holes() {
    const BlockGeometry& geometry = tracked_.source.geometry();
    bool busy = false;
    while (!context_.stop && room()) {
        {
            const std::lock_guard lock(tracked_.mutex);
            if (tracked_.source.queued_ops() >= zero_ops_ahead) {
                break;
            }
            const auto dirty = tracked_.source.next_dirty(cursor_, geometry.disk_size);
            if (!dirty) {
                scanning_ = false;
                context_.holes_known = true;
                break;
            }
            cursor_ = *dirty;
        }
        busy = true;
        const uint64_t end = std::min(cursor_ + hole_limit, geometry.disk_size);
        if (!find_extent(cursor_, end)) {
            cursor_ = std::min(round_up(known_.end(), geometry.block_size), geometry.disk_size);
            known_ = {};
        }
    }
    return busy || !scanning_;
}

// Learns how the disk reads at offset. True if whole blocks from there on were captured as a hole.
bool Link::find_extent(uint64_t offset, uint64_t end) {
    const BlockGeometry& geometry = tracked_.source.geometry();
    if (!context_.disk.features().can_extents) {
        known_ = {offset, end - offset};
        return false;
    }
    if (offset < known_.offset || offset >= known_.end()) {
        const BackendExtent extent = context_.disk.extents({offset, end - offset}, true).at(0);
        known_ = {offset, extent.length};
        known_zero_ = extent.zero;
    }
    if (!known_zero_) {
        return false;
    }
    const uint64_t hole_end = known_.end() == geometry.disk_size
                                  ? known_.end()
                                  : round_down(known_.end(), geometry.block_size);
    if (hole_end <= offset) {
        known_.length =
            round_up(known_.end(), geometry.block_size) - known_.offset; // one block, read as data
        known_zero_ = false;
        return false;
    }
    capture_hole({offset, hole_end - offset});
    return true;
}

void Link::capture_hole(Extent range) {
    const Tracked::Range held(tracked_, range);
    // Looked up again now that nobody writes here.
    const BackendExtent extent = context_.disk.extents(range, true).at(0);
    if (!extent.zero || extent.length < range.length) {
        known_ = {};
        if (!extent.zero) {
            known_ = {
                range.offset,
                std::min<uint64_t>(round_up(extent.length, tracked_.source.geometry().block_size),
                                   range.length)};
            known_zero_ = false;
        }
        return;
    }
    const std::lock_guard lock(tracked_.mutex);
    tracked_.source.commit_hole(range, monotonic_us());
    cursor_ = range.end();
}

void Link::start_read(Source::Capture capture) {
    const Extent range = capture.range();
    reads_.push_back({std::move(capture), context_.buffers->take(range.length)});
    Read& read = reads_.back();
    if (ring_ && range.offset % context_.disk.ring_alignment() == 0 &&
        range.length % context_.disk.ring_alignment() == 0) {
        ring_->read(context_.disk.ring_fd(),
                    read.buffer.data(),
                    static_cast<uint32_t>(range.length),
                    range.offset,
                    reinterpret_cast<uint64_t>(&read));
        return;
    }
    context_.disk.read(read.buffer.data(), range);
    completions_.push_back({reinterpret_cast<uint64_t>(&read), static_cast<int>(range.length)});
}

bool Link::finish_reads() {
    if (ring_ && ring_->under_way() > 0) {
        ring_->reap(completions_);
    }
    if (completions_.empty()) {
        return false;
    }
    std::vector<ReaderRing::Completion> done;
    done.swap(completions_);
    for (const ReaderRing::Completion& completion : done) {
        auto* const read = reinterpret_cast<Read*>(completion.cookie);
        const auto it = std::find_if(
            reads_.begin(), reads_.end(), [&](const Read& each) { return &each == read; });
        const Extent range = it->capture.range();
        if (completion.result < 0) {
            throw_errno(
                fmt::format(
                    "{}: reading {} bytes at {}", context_.disk.name(), range.length, range.offset),
                -completion.result);
        }
        if (static_cast<uint64_t>(completion.result) != range.length) {
            context_.disk.read(read->buffer.data(),
                               range); // short: the ordinary way goes on or says why not
        }
        Source::Capture capture = std::move(it->capture);
        FrameBuffer buffer = std::move(it->buffer);
        reads_.erase(it);
        commit(capture, std::move(buffer));
    }
    return true;
}

void Link::commit(Source::Capture& capture, FrameBuffer buffer) {
    std::vector<Op> ops = pack_ops(buffer.data(), capture.parts, BufferPool::headroom);
    const Tracked::Range held(tracked_, capture.lock_range);
    bool again = false;
    {
        const std::lock_guard lock(tracked_.mutex);
        again = !tracked_.source.unchanged(capture);
        if (again) {
            tracked_.source.refresh(capture);
        }
    }
    if (again && !capture.parts.empty()) {
        const Extent range = capture.range();
        if (range.length > buffer.capacity) {
            buffer = BufferPool::allocate(range.length);
        }
        context_.disk.read(buffer.data(), range);
        ops = pack_ops(buffer.data(), capture.parts, BufferPool::headroom);
    } else if (again) {
        ops.clear();
    }
    const std::lock_guard lock(tracked_.mutex);
    tracked_.source.commit_capture(capture, std::move(ops), std::move(buffer), monotonic_us());
}

} // namespace drover
