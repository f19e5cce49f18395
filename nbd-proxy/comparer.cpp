// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/comparer.h"

#include "common/error.h"

#include <thread>

namespace drover {
namespace {

constexpr uint64_t hashes_at_once = 256; // what the export answers at most
constexpr size_t requests_ahead = 4;
constexpr uint64_t piece_bytes = 1 * MiB; // read here at once
constexpr int poll_ms = 100;              // how soon a stop is noticed
// For as many blocks to be read and hashed there, beside what else it has to do.
constexpr uint64_t answer_limit_us = 60'000'000;
constexpr std::chrono::milliseconds holes_look{2};

[[noreturn]] void lost(const std::string& why) {
    throw Error(ErrorKind::peer, "the link to the destination's hashes was lost: " + why, ENOTCONN);
}

} // namespace

Comparer::Comparer(StreamContext& context, NbdHandle handle, uint64_t seed)
    : context_(context), tracked_(context.tracked), geometry_(context.tracked.source.geometry()),
      seed_(seed), handle_(std::move(handle)),
      buffer_(std::max<uint64_t>(piece_bytes, geometry_.block_size)) {
    if (static_cast<uint64_t>(nbd_get_size(handle_.get())) !=
        geometry_.blocks() * sizeof(Hash128)) {
        throw Error(ErrorKind::peer, "the destination's hashes are of another disk", EINVAL);
    }
}

// Answers go to requests_ until libnbd is done with them.
Comparer::~Comparer() {
    handle_.reset();
}

// There is next to nothing to send for holes, and nothing to read.
bool Comparer::wait_for_holes() const {
    while (!context_.holes_known && !context_.stop) {
        std::this_thread::sleep_for(holes_look);
    }
    return !context_.stop;
}

bool Comparer::run() {
    if (!wait_for_holes()) {
        return false;
    }
    for (;;) {
        ask();
        if (requests_.empty()) {
            break;
        }
        while (!answered()) {
            if (context_.stop) {
                return false;
            }
        }
        const Request request = std::move(requests_.front());
        requests_.pop_front();
        has_answers_ = true;
        ask(); // before the work here
        compare(request);
        if (context_.stop) {
            return false;
        }
    }
    {
        const std::lock_guard lock(tracked_.mutex);
        tracked_.source.compared_to(geometry_.disk_size);
    }
    tracked_.wake();
    return true;
}

void Comparer::ask() {
    while (requests_.size() < requests_ahead) {
        Request request;
        {
            const std::lock_guard lock(tracked_.mutex);
            request.asked = tracked_.source.next_question(next_block_, hashes_at_once);
        }
        if (request.asked.blocks == 0) {
            return;
        }
        next_block_ = request.asked.first_block + request.asked.blocks;
        request.hashes.resize(request.asked.blocks);
        request.sent_us = monotonic_us();
        requests_.push_back(std::move(request));
        Request& sent = requests_.back();
        sent.cookie = nbd_aio_pread(handle_.get(),
                                    sent.hashes.data(),
                                    sent.hashes.size() * sizeof(Hash128),
                                    sent.asked.first_block * sizeof(Hash128),
                                    NBD_NULL_COMPLETION,
                                    0);
        if (sent.cookie < 0) {
            requests_.pop_back();
            lost(libnbd_error());
        }
    }
}

// Whether the oldest request was; waits for a moment.
bool Comparer::answered() {
    nbd_handle* const h = handle_.get();
    const Request& oldest = requests_.front();
    const int done = nbd_aio_command_completed(h, static_cast<uint64_t>(oldest.cookie));
    if (done > 0) {
        return true;
    }
    if (done < 0) {
        const int error = nbd_get_errno();
        const std::string why = libnbd_error();
        if (nbd_ended(h)) {
            lost(why);
        }
        throw Error(ErrorKind::peer, "the destination's hashes: " + why, error != 0 ? error : EIO);
    }
    if (nbd_ended(h) || nbd_poll(h, poll_ms) < 0) {
        lost(libnbd_error());
    }
    if (monotonic_us() > oldest.sent_us + answer_limit_us) {
        lost(fmt::format("no answer for {} s", answer_limit_us / 1'000'000));
    }
    return false;
}

void Comparer::compare(const Request& request) {
    const Source::Question& asked = request.asked;
    const uint64_t step = std::max<uint64_t>(piece_bytes / geometry_.block_size, 1);
    for (uint64_t done = 0; done < asked.blocks && !context_.stop; done += step) {
        compare_piece(request, asked.first_block + done, std::min(step, asked.blocks - done));
        if (const auto rest = give_way_.rest(tracked_.guest_requests()); rest.count() > 0) {
            std::this_thread::sleep_for(rest);
        }
    }
    if (context_.stop) {
        return; // what was not compared is asked for again
    }
    {
        const std::lock_guard lock(tracked_.mutex);
        tracked_.source.compared_to(geometry_.bytes_of(asked.first_block, asked.blocks).end());
    }
    tracked_.wake();
}

void Comparer::compare_piece(const Request& request, uint64_t first, uint64_t blocks) {
    Source::Capture read;
    {
        const std::lock_guard lock(tracked_.mutex);
        read = tracked_.source.begin_compare(first, blocks);
    }
    context_.disk.read(buffer_.data(), read.lock_range);
    const auto is_same = [&](uint64_t i) {
        const Extent bytes = geometry_.bytes_of(first + i, 1);
        return hash128(&buffer_[i * geometry_.block_size], bytes.length, seed_) ==
               request.hashes[first + i - request.asked.first_block];
    };
    for (uint64_t i = 0; i < blocks;) {
        const uint64_t from = i;
        while (i < blocks && is_same(i)) {
            ++i;
        }
        if (i > from) {
            commit(read, from, i, request);
        } else {
            ++i;
        }
    }
}

// Blocks [from, to) of what was read.
void Comparer::commit(const Source::Capture& read,
                      uint64_t from,
                      uint64_t to,
                      const Request& request) {
    Source::Capture same;
    same.first_block = read.first_block + from;
    same.blocks = to - from;
    same.lock_range = geometry_.bytes_of(same.first_block, same.blocks);
    same.versions.assign(read.versions.begin() + static_cast<ptrdiff_t>(from),
                         read.versions.begin() + static_cast<ptrdiff_t>(to));
    const Tracked::Range held(tracked_, same.lock_range);
    const std::lock_guard lock(tracked_.mutex);
    tracked_.source.commit_same(same, request.asked);
}

} // namespace drover
