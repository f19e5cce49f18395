// SPDX-License-Identifier: GPL-2.0-or-later
// What a disk is kept on: a raw file, a block device, or an NBD server.
#pragma once

#include "common/units.h"
#include "nbd-proxy/client_gone.h"

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace drover {

// How a range of a disk reads, as far as its storage knows.
struct BackendExtent {
    uint64_t length = 0;
    bool hole = false;  // not allocated
    bool zero = false;  // reads as zeroes
};

// Thread-safe: every call may be made from any thread at any time, and two at
// once. Calls block until done, and throw Error(io) with the errno to give the
// client (EIO, ENOSPC, ...). Offsets and lengths are in bytes, within size(),
// with no alignment asked of the caller: a backend on O_DIRECT does its own.
class Backend {
public:
    struct Features {
        bool can_trim = false;
        bool can_zero = false;
        bool can_fast_zero = false;
        bool can_extents = false;
        bool can_cache = false;
        bool rotational = false;
        bool multi_conn = true;      // a flush covers the writes of every connection
        bool trim_reads_zero = false;  // what was trimmed reads as zeroes
        // Block size hints for clients (nbdkit's block_size callback); 0: none.
        uint32_t minimum = 0, preferred = 0, maximum = 0;
    };

    virtual ~Backend() = default;

    virtual uint64_t size() const = 0;
    virtual const Features& features() const = 0;
    virtual bool read_only() const = 0;

    virtual void read(void* data, Extent where) = 0;
    // fua: durable before it returns.
    virtual void write(const void* data, Extent where, bool fua) = 0;
    // After one that failed because the storage did, every later one fails: what was lost is not
    // known.
    virtual void flush() = 0;
    // Advice: false where the storage cannot give space back, and then nothing was changed. Content
    // afterwards, else: undefined unless features().trim_reads_zero.
    virtual bool trim(Extent where, bool fua) = 0;
    // may_punch: space may be given back. fast: throw Error(io, EOPNOTSUPP) at once rather
    // than write zeroes out.
    virtual void zero(Extent where, bool may_punch, bool fast, bool fua) = 0;
    virtual void cache(Extent where) = 0;
    // Flushes, and reads what comes next from storage, as far as it can be told to: what an earlier
    // process's flush has lost may still be in the page cache.
    virtual void drop_cache() { flush(); }
    // Extents from where.offset on, in order, without gaps, at least one, until where.end()
    // or earlier (a caller asks again from there). one: only the first is wanted.
    virtual std::vector<BackendExtent> extents(Extent where, bool one) = 0;

    // A descriptor that whole-disk readers may use with io_uring, -1 if there is none;
    // and the alignment that offset, length and memory must then have (1: none).
    virtual int ring_fd() const { return -1; }
    virtual uint32_t ring_alignment() const { return 1; }
    // The file or device, or the URI, for messages.
    virtual const std::string& name() const = 0;
};

enum class CacheMode { normal, none };

struct FileBackendOptions {
    bool read_only = false;
    CacheMode cache = CacheMode::normal;  // none: written data does not stay in the page cache
    // Replica being made: create the file, sparse, of this size; 0: it must exist.
    uint64_t create_size = 0;
};

// A raw file or a block device (opened O_EXCL and O_DIRECT). Takes QEMU-compatible OFD
// locks on a file (block/file-posix.c: bytes 100+n and 200+n), so that a second writer is
// refused on either side. Throws Error(io), or Error(refused) if another process holds it.
std::unique_ptr<Backend> open_file_backend(const std::string& path, const FileBackendOptions& options);

// Any NBD server, by an NBD URI (libnbd's nbd_connect_uri). Opens several connections where the
// server is multi-conn. Where the server goes, requests wait that long for it to come back, and what
// was not flushed is written again. Throws Error(io) or Error(peer).
std::unique_ptr<Backend> open_nbd_backend(const std::string& uri,
                                          bool read_only,
                                          std::chrono::milliseconds reconnect,
                                          ClientGone gone = {});

}  // namespace drover
