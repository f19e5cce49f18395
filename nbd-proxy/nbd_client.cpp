// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/nbd_client.h"

#include "common/error.h"
#include "nbd-proxy/block_split.h"
#include "nbd-proxy/edge_lock.h"
#include "nbd-proxy/nbd_connection.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <future>
#include <mutex>
#include <utility>

#include <libnbd.h>

namespace drover {
namespace {

constexpr uint64_t safe_request = 32 * MiB;  // what servers take that name no limit
constexpr uint64_t zero_request = 256 * MiB; // a server may have to write it out: not too slow
constexpr uint64_t zeroes_at_once = 1 * MiB;

std::string describe(const NbdClientOptions& options) {
    if (!options.uri.empty()) {
        return options.uri;
    }
    const std::string tls = options.psk_user.empty() ? "" : "s";
    if (!options.socket.empty()) {
        return fmt::format("nbd{}+unix:///{}?socket={}", tls, options.export_name, options.socket);
    }
    const bool bare_ipv6 = options.host.find(':') != std::string::npos;
    return fmt::format("nbd{}://{}:{}/{}",
                       tls,
                       bare_ipv6 ? "[" + options.host + "]" : options.host,
                       options.port,
                       options.export_name);
}

const char* verb_text(NbdVerb verb) {
    switch (verb) {
    case NbdVerb::read:
        return "read";
    case NbdVerb::write:
        return "write";
    case NbdVerb::flush:
        return "flush";
    case NbdVerb::trim:
        return "trim";
    case NbdVerb::zero:
        return "zero";
    case NbdVerb::cache:
        return "cache";
    case NbdVerb::extents:
        break;
    }
    return "look up the extents of";
}

} // namespace

class NbdClient::Impl {
public:
    explicit Impl(NbdClientOptions options);
    ~Impl();

    void transfer(NbdCommand whole, uint64_t piece_limit);
    void write_blocks(const std::byte* data, Extent where, uint32_t flags);
    void rewrite(const void* data, Extent part, uint32_t flags);
    void write_zeroes(Extent where, uint32_t flags);
    // Ends a change: FUA by a flush where the server has none of its own.
    void settle(bool fua);
    uint32_t fua_flag(bool fua) const {
        return fua && server().fua ? static_cast<uint32_t>(LIBNBD_CMD_FLAG_FUA) : 0;
    }
    void must_be_writable() const;

    // Rounded out to what the server can address; the disk's end may be the middle of a block.
    Extent covering(Extent where) const {
        const Extent blocks = covering_blocks(where, unit_);
        return {blocks.offset, std::min(blocks.end(), server().size) - blocks.offset};
    }
    BlockSplit split(Extent where) const {
        BlockSplit parts = split_blocks(where, unit_);
        if (where.end() == server().size && parts.tail.length > 0) {
            parts.middle.length += parts.tail.length;
            parts.tail = {where.end(), 0};
        }
        return parts;
    }

    const NbdConnection::Server& server() const { return connections_.front()->server(); }
    [[noreturn]] void failed(NbdVerb verb, Extent where, int error) const;

    const NbdClientOptions options_;
    const std::string name_;
    Features features_;
    uint64_t unit_ = 1;          // the server's minimum block
    uint64_t data_limit_ = 0;    // of one read or write
    uint64_t no_data_limit_ = 0; // of one trim, zero or cache
    EdgeLock edges_;
    std::atomic<bool> alive_ = true;

private:
    void lose(ErrorKind kind, const std::string& reason);
    NbdConnection& idlest();

    mutable std::mutex mutex_; // below
    mutable std::condition_variable lost_;
    ErrorKind lost_kind_ = ErrorKind::peer;
    std::string lost_reason_;
    bool complete_ = false; // connections_ has all and is read without a lock from then on

    // Last, so that the threads end first.
    std::vector<std::unique_ptr<NbdConnection>> connections_;
    friend class NbdClient;
};

NbdClient::Impl::Impl(NbdClientOptions options)
    : options_(std::move(options)), name_(describe(options_)) {
    const int places = !options_.uri.empty() + !options_.socket.empty() + !options_.host.empty();
    if (places != 1 || options_.connections == 0) {
        throw Error(ErrorKind::usage,
                    "an NBD server is named by one of a URI, a socket and a host, and needs at "
                    "least one connection");
    }
    const auto connect = [this] {
        return std::make_unique<NbdConnection>(
            options_, name_, [this](const std::string& reason) { lose(ErrorKind::peer, reason); });
    };
    std::vector<std::future<std::unique_ptr<NbdConnection>>> others;
    for (unsigned i = 1; options_.multi_conn && i < options_.connections; ++i) {
        others.push_back(std::async(std::launch::async, connect));
    }
    connections_.push_back(connect());
    const NbdConnection::Server first = server();
    while (first.multi_conn && connections_.size() < options_.connections) {
        if (others.empty()) {
            connections_.push_back(connect());
        } else {
            connections_.push_back(others.back().get());
            others.pop_back();
        }
        if (connections_.back()->server().size != first.size) {
            throw Error(ErrorKind::peer,
                        fmt::format("{} changed its size while it was connected to", name_),
                        EIO);
        }
    }
    unit_ = std::max<uint64_t>(first.minimum, 1);
    const uint64_t limit = first.maximum > 0 ? first.maximum : safe_request;
    data_limit_ = std::max(round_down(std::min(limit, safe_request), unit_), unit_);
    no_data_limit_ = round_down(zero_request, unit_);

    const bool writable = !options_.read_only && !first.read_only;
    features_ = {
        .can_trim = writable && first.trim,
        .can_zero = writable,
        .can_fast_zero = writable && first.zero && first.fast_zero,
        .can_extents = first.extents,
        .can_cache = first.cache,
        .rotational = first.rotational,
        .multi_conn = true, // one connection, or a server that promises it
        .trim_reads_zero = false,
        .minimum = 1,
        .preferred = std::clamp<uint32_t>(first.preferred, 4 * KiB, 32 * MiB),
        .maximum = 0xffffffff,
    };
    const std::lock_guard lock(mutex_);
    complete_ = true;
}

// A connection that is lost from here on has no others to tell: some of them are gone.
NbdClient::Impl::~Impl() {
    const std::lock_guard lock(mutex_);
    complete_ = false;
}

void NbdClient::Impl::lose(ErrorKind kind, const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (!alive_) {
        return;
    }
    lost_kind_ = kind;
    lost_reason_ = reason;
    alive_ = false;
    lost_.notify_all();
    if (complete_) { // else the constructor, or the destructor, is at it; callers find out
        for (const auto& connection : connections_) {
            connection->give_up();
        }
    }
}

NbdConnection& NbdClient::Impl::idlest() {
    return **std::min_element(
        connections_.begin(), connections_.end(), [](const auto& a, const auto& b) {
            return a->in_flight() < b->in_flight();
        });
}

void NbdClient::Impl::failed(NbdVerb verb, Extent where, int error) const {
    const std::string what =
        verb == NbdVerb::flush
            ? "flush"
            : fmt::format("{} {} bytes at {} of", verb_text(verb), where.length, where.offset);
    if (error == nbd_connection_lost) {
        std::unique_lock lock(mutex_);
        lost_.wait(lock, [this] { return !alive_; }); // its thread tells the reason at once
        throw Error(lost_kind_,
                    fmt::format("cannot {} {}: connection lost: {}", what, name_, lost_reason_),
                    EIO);
    }
    throw_errno(fmt::format("cannot {} {}", what, name_), error);
}

// whole, in pieces that the server takes, all in flight at once.
void NbdClient::Impl::transfer(NbdCommand whole, uint64_t piece_limit) {
    if (!alive_) {
        failed(whole.verb, whole.where, nbd_connection_lost);
    }
    NbdCompletion completion;
    whole.completion = &completion;
    const uint64_t count =
        std::max<uint64_t>(round_up(whole.where.length, piece_limit) / piece_limit, 1);
    std::vector<NbdCommand> pieces(count, whole);
    Extent left = whole.where;
    for (NbdCommand& piece : pieces) {
        piece.where.offset = left.offset;
        piece.where.length = std::min(left.length, piece_limit);
        const uint64_t done = left.offset - whole.where.offset;
        if (whole.to != nullptr) {
            piece.to = static_cast<std::byte*>(whole.to) + done;
        }
        if (whole.from != nullptr) {
            piece.from = static_cast<const std::byte*>(whole.from) + done;
        }
        left = {piece.where.end(), left.length - piece.where.length};
        idlest().submit(piece);
    }
    if (!completion.wait(options_.request_timeout)) {
        lose(ErrorKind::timeout,
             fmt::format("no answer within {} ms", options_.request_timeout.count()));
        completion.wait();
    }
    if (completion.error() != 0) {
        failed(whole.verb, whole.where, completion.error());
    }
}

void NbdClient::Impl::must_be_writable() const {
    if (options_.read_only || server().read_only) {
        throw_errno(fmt::format("cannot change {}", name_), EROFS);
    }
}

void NbdClient::Impl::settle(bool fua) {
    if (fua && !server().fua && server().flush) {
        transfer({.verb = NbdVerb::flush}, 1);
    }
}

void NbdClient::Impl::write_blocks(const std::byte* data, Extent where, uint32_t flags) {
    if (where.length > 0) {
        transfer({.verb = NbdVerb::write, .where = where, .flags = flags, .from = data},
                 data_limit_);
    }
}

// part lies within one block.
void NbdClient::Impl::rewrite(const void* data, Extent part, uint32_t flags) {
    if (part.length == 0) {
        return;
    }
    const Extent block = covering(part);
    std::vector<std::byte> content(block.length);
    transfer({.verb = NbdVerb::read, .where = block, .to = content.data()}, data_limit_);
    const auto* from = static_cast<const std::byte*>(data);
    std::copy_n(
        from, part.length, content.begin() + static_cast<ptrdiff_t>(part.offset - block.offset));
    write_blocks(content.data(), block, flags);
}

void NbdClient::Impl::write_zeroes(Extent where, uint32_t flags) {
    static const std::vector<std::byte> zeroes(zeroes_at_once);
    while (where.length > 0) {
        const Extent piece{where.offset, std::min(where.length, zeroes_at_once)};
        write_blocks(zeroes.data(), piece, flags);
        where = {piece.end(), where.length - piece.length};
    }
}

NbdClient::NbdClient(const NbdClientOptions& options) : impl_(std::make_unique<Impl>(options)) {}
NbdClient::~NbdClient() = default;

bool NbdClient::alive() const {
    return impl_->alive_;
}
uint64_t NbdClient::size() const {
    return impl_->server().size;
}
const Backend::Features& NbdClient::features() const {
    return impl_->features_;
}
const std::string& NbdClient::name() const {
    return impl_->name_;
}
bool NbdClient::read_only() const {
    return impl_->options_.read_only || impl_->server().read_only;
}

void NbdClient::read(void* data, Extent where) {
    if (where.length == 0) {
        return;
    }
    if (impl_->split(where).whole()) {
        impl_->transfer({.verb = NbdVerb::read, .where = where, .to = data}, impl_->data_limit_);
        return;
    }
    const Extent blocks = impl_->covering(where);
    std::vector<std::byte> content(blocks.length);
    impl_->transfer({.verb = NbdVerb::read, .where = blocks, .to = content.data()},
                    impl_->data_limit_);
    std::copy_n(content.begin() + static_cast<ptrdiff_t>(where.offset - blocks.offset),
                where.length,
                static_cast<std::byte*>(data));
}

void NbdClient::write(const void* data, Extent where, bool fua) {
    impl_->must_be_writable();
    const uint32_t flags = impl_->fua_flag(fua);
    const auto* from = static_cast<const std::byte*>(data);
    if (impl_->unit_ == 1) {
        impl_->write_blocks(from, where, flags);
    } else {
        const BlockSplit parts = impl_->split(where);
        const EdgeLock::Guard guard = impl_->edges_.take(impl_->covering(where), !parts.whole());
        impl_->rewrite(from, parts.head, flags);
        from += parts.head.length;
        impl_->write_blocks(from, parts.middle, flags);
        impl_->rewrite(from + parts.middle.length, parts.tail, flags);
    }
    impl_->settle(fua);
}

void NbdClient::flush() {
    if (impl_->server().flush) { // else the server keeps nothing back
        impl_->transfer({.verb = NbdVerb::flush}, 1);
    } else if (!alive()) {
        impl_->failed(NbdVerb::flush, {}, nbd_connection_lost);
    }
}

// Only whole blocks: what a trim leaves behind is undefined anyway.
bool NbdClient::trim(Extent where, bool fua) {
    impl_->must_be_writable();
    const Extent blocks = impl_->split(where).middle;
    if (!impl_->features_.can_trim || blocks.length == 0) {
        return false;
    }
    const EdgeLock::Guard guard = impl_->edges_.take(blocks, false);
    try {
        impl_->transfer({.verb = NbdVerb::trim, .where = blocks, .flags = impl_->fua_flag(fua)},
                        impl_->no_data_limit_);
    } catch (const Error& error) {
        // The server offers it and its storage cannot, perhaps only in some places. nbdkit says
        // EINVAL then: the protocol's own error for that is for fast zeroes alone.
        if (error.sys_errno() != EOPNOTSUPP && error.sys_errno() != EINVAL) {
            throw;
        }
    }
    impl_->settle(fua);
    return true;
}

void NbdClient::zero(Extent where, bool may_punch, bool fast, bool fua) {
    impl_->must_be_writable();
    if (fast && !impl_->features_.can_fast_zero) {
        impl_->failed(NbdVerb::zero, where, EOPNOTSUPP);
    }
    static const std::array<std::byte, 64 * KiB> zeroes{}; // the largest minimum block
    const uint32_t fua_flag = impl_->fua_flag(fua);
    const BlockSplit parts = impl_->split(where);
    if (where.length > 0) {
        const EdgeLock::Guard guard = impl_->edges_.take(impl_->covering(where), !parts.whole());
        if (parts.middle.length > 0 && impl_->server().zero) {
            const uint32_t flags =
                fua_flag | (may_punch ? 0u : static_cast<uint32_t>(LIBNBD_CMD_FLAG_NO_HOLE)) |
                (fast ? static_cast<uint32_t>(LIBNBD_CMD_FLAG_FAST_ZERO) : 0u);
            impl_->transfer({.verb = NbdVerb::zero, .where = parts.middle, .flags = flags},
                            impl_->no_data_limit_);
        } else {
            impl_->write_zeroes(parts.middle, fua_flag);
        }
        impl_->rewrite(zeroes.data(), parts.head, fua_flag);
        impl_->rewrite(zeroes.data(), parts.tail, fua_flag);
    }
    impl_->settle(fua);
}

void NbdClient::cache(Extent where) {
    if (impl_->server().cache && where.length > 0) {
        impl_->transfer({.verb = NbdVerb::cache, .where = impl_->covering(where)},
                        impl_->no_data_limit_);
    }
}

std::vector<BackendExtent> NbdClient::extents(Extent where, bool one) {
    if (!impl_->server().extents) {
        return {{.length = where.length}};
    }
    const Extent asked = impl_->covering(where);
    const uint32_t flags = one ? static_cast<uint32_t>(LIBNBD_CMD_FLAG_REQ_ONE) : 0;
    std::vector<BackendExtent> found;
    impl_->transfer({.verb = NbdVerb::extents, .where = asked, .flags = flags, .extents = &found},
                    asked.length);
    // What the server said, cut to what was asked for here.
    std::vector<BackendExtent> clipped;
    uint64_t at = asked.offset;
    for (BackendExtent extent : found) {
        const uint64_t first = std::max(at, where.offset);
        at += extent.length;
        const uint64_t last = std::min(at, where.end());
        if (first < last && !(one && !clipped.empty())) {
            extent.length = last - first;
            clipped.push_back(extent);
        }
    }
    if (clipped.empty()) {
        impl_->failed(NbdVerb::extents, where, EPROTO);
    }
    return clipped;
}

} // namespace drover
