// SPDX-License-Identifier: GPL-2.0-or-later
// Raw files through the page cache; block devices with O_DIRECT. All threads share one
// descriptor: data goes by pread and pwrite, so its position serves SEEK_DATA and SEEK_HOLE alone.
#include "common/error.h"
#include "common/unique_fd.h"
#include "nbd-proxy/aligned_io.h"
#include "nbd-proxy/backend.h"
#include "nbd-proxy/image_lock.h"
#include "nbd-proxy/raw_io.h"
#include "nbd-proxy/writeback_window.h"

#include <atomic>
#include <bit>
#include <filesystem>
#include <mutex>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

namespace drover {
namespace {

constexpr int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int zero_range = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
constexpr int allocate = FALLOC_FL_KEEP_SIZE;
constexpr size_t extents_at_once = 4096;

// What files and devices have in common.
class RawBackend : public Backend {
public:
    uint64_t size() const override { return size_; }
    const Features& features() const override { return features_; }
    bool read_only() const override { return read_only_; }
    const std::string& name() const override { return name_; }
    int ring_fd() const override { return for_ring_ ? fd_.get() : -1; }

    // The kernel reports a page that it could not write once, and then takes it for clean: after
    // one failure no later flush may claim that everything is on the disk.
    void flush() override {
        check_sync();
        while (fdatasync(fd_.get()) < 0) {
            if (errno != EINTR) {
                sync_error_ = errno;
            }
            check_sync();
        }
        check_sync(); // another thread's call may have been told of the loss instead of ours
    }
    void drop_cache() override {
        flush();
        posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED); // advice: no reason to fail
    }

protected:
    RawBackend(UniqueFd fd, std::string name, uint64_t size, bool read_only)
        : fd_(std::move(fd)), name_(std::move(name)), size_(size), read_only_(read_only) {
        features_.can_trim = features_.can_zero = features_.can_fast_zero = !read_only;
        features_.trim_reads_zero = true;
        features_.minimum = 1;
        features_.maximum = 0xffffffff;
        // Where the kernel cannot try a read without waiting (tmpfs), io_uring hands each one to a
        // thread of its own, which costs more than reading here.
        std::byte probe{};
        const iovec one{&probe, 1};
        for_ring_ = preadv2(fd_.get(), &one, 1, 0, RWF_NOWAIT) >= 0 || errno != EOPNOTSUPP;
    }

    void flush_if(bool fua) {
        if (fua) {
            flush();
        }
    }
    void data_lost(int error) { sync_error_ = error; }

    // False, now and from then on, where the storage cannot do it: nothing was changed.
    bool attempt(std::atomic<bool>& supported, int mode, Extent where) {
        if (supported && !try_fallocate(fd_.get(), mode, where, name_)) {
            supported = false;
        }
        return supported;
    }

    [[noreturn]] void unsupported(const char* what) const {
        throw Error(ErrorKind::io, fmt::format("{}: cannot {} here", name_, what), EOPNOTSUPP);
    }

    // A hint must be a power of two; more than 1 MiB helps nobody.
    void prefer_blocks(uint64_t hint) {
        features_.preferred =
            static_cast<uint32_t>(std::bit_ceil(std::clamp<uint64_t>(hint, 4 * KiB, 1 * MiB)));
    }

    const UniqueFd fd_;
    const std::string name_;
    const uint64_t size_;
    const bool read_only_;
    Features features_;
    bool for_ring_ = false;
    std::atomic<bool> can_punch_ = true, can_zero_range_ = true, can_allocate_ = true;

private:
    void check_sync() const {
        if (const int error = sync_error_; error != 0) {
            throw_errno(fmt::format("cannot flush {}: written data was lost, and it must be "
                                    "opened again",
                                    name_),
                        error);
        }
    }

    std::atomic<int> sync_error_ = 0;
};

// The last stretch of data that was found in a file. On tmpfs SEEK_HOLE goes through all its pages
// and keeps every write out meanwhile (1 GiB: 20 ms), and who looks at a disk piece by piece would
// ask for the same end each time. Only punching turns data into a hole. Thread-safe.
class DataRun {
public:
    // To be had before a search whose result is then reported to found().
    uint64_t epoch() const { return epoch_; }

    void found(Extent data, uint64_t epoch) {
        const std::lock_guard lock(mutex_);
        if (epoch == epoch_) { // else it may have been punched since
            data_ = data;
        }
    }
    // Before and after punching: a search between the two may have seen either.
    void punching(Extent where) {
        const std::lock_guard lock(mutex_);
        ++epoch_;
        if (data_.overlaps(where)) {
            const Extent left{data_.offset, where.offset - std::min(where.offset, data_.offset)};
            const Extent right{where.end(), data_.end() - std::min(where.end(), data_.end())};
            data_ = left.length >= right.length ? left : right;
        }
    }
    // Where the data around `at` ends; nullopt if that is not known.
    std::optional<uint64_t> end_of(uint64_t at) const {
        const std::lock_guard lock(mutex_);
        return at >= data_.offset && at < data_.end() ? std::optional(data_.end()) : std::nullopt;
    }

private:
    mutable std::mutex mutex_;
    Extent data_;
    std::atomic<uint64_t> epoch_ = 0;
};

class FileBackend final : public RawBackend {
public:
    FileBackend(UniqueFd fd,
                const std::string& path,
                const struct stat& attributes,
                const FileBackendOptions& options)
        : RawBackend(
              std::move(fd), path, static_cast<uint64_t>(attributes.st_size), options.read_only) {
        features_.can_extents = true;
        features_.can_cache = options.cache == CacheMode::normal;
        prefer_blocks(static_cast<uint64_t>(attributes.st_blksize));
        if (options.cache == CacheMode::none) {
            window_.emplace(fd_.get());
        }
        if (size() > 0) {
            extents({0, size()}, true); // nobody waits yet: a file without holes is known from here
        }
    }

    void read(void* data, Extent where) override {
        read_fully(fd_.get(), data, where, name_);
        if (window_) {
            window_->read(where);
        }
    }

    void write(const void* data, Extent where, bool fua) override {
        write_fully(fd_.get(), data, where, false, name_);
        wrote(where);
        flush_if(fua);
    }

    bool trim(Extent where, bool fua) override {
        if (where.length > 0 && !punch_out(where)) {
            return false;
        }
        flush_if(fua);
        return true;
    }

    void zero(Extent where, bool may_punch, bool fast, bool fua) override {
        if (where.length > 0 && !zero_unwritten(where, may_punch)) {
            if (fast) {
                unsupported("zero quickly");
            }
            write_zeroes(fd_.get(), where, name_);
            wrote(where);
        }
        flush_if(fua);
    }

    void cache(Extent where) override {
        posix_fadvise(fd_.get(),
                      static_cast<off_t>(where.offset),
                      static_cast<off_t>(where.length),
                      POSIX_FADV_WILLNEED);
    }

    std::vector<BackendExtent> extents(Extent where, bool one) override {
        std::vector<BackendExtent> found;
        uint64_t at = where.offset;
        while (at < where.end() && found.size() < (one ? 1 : extents_at_once)) {
            if (const auto known = data_run_.end_of(at)) {
                const uint64_t end = std::min(*known, where.end());
                found.push_back({.length = end - at});
                at = end;
                continue;
            }
            const uint64_t epoch = data_run_.epoch();
            const uint64_t data = seek(at, SEEK_DATA);
            const bool hole = data > at;
            const uint64_t end = hole ? data : seek(at, SEEK_HOLE);
            if (!hole && end > at) {
                data_run_.found({at, end - at}, epoch);
            }
            if (end > at) { // else it was punched between the two calls: look again
                const uint64_t length = std::min(end, where.end()) - at;
                found.push_back({.length = length, .hole = hole, .zero = hole});
                at += length;
            }
        }
        return found;
    }

private:
    void wrote(Extent where) {
        if (window_) {
            if (const int error = window_->wrote(where); error != 0) {
                data_lost(error);
            }
        }
    }

    bool zero_unwritten(Extent where, bool may_punch) {
        if (may_punch && punch_out(where)) {
            return true;
        }
        data_run_.punching(where); // unwritten extents count as holes
        const bool zeroed = attempt(can_zero_range_, zero_range, where);
        data_run_.punching(where);
        if (zeroed) {
            return true;
        }
        // tmpfs has both of these but not the one above.
        return !may_punch && can_allocate_ && punch_out(where) &&
               attempt(can_allocate_, allocate, where);
    }

    bool punch_out(Extent where) {
        data_run_.punching(where);
        const bool done = attempt(can_punch_, punch, where);
        data_run_.punching(where);
        return done;
    }

    uint64_t seek(uint64_t from, int whence) const {
        const off_t found = lseek(fd_.get(), static_cast<off_t>(from), whence);
        if (found >= 0) {
            return static_cast<uint64_t>(found);
        }
        if (errno == ENXIO) { // nothing but a hole from here on
            return size_;
        }
        throw_errno(fmt::format("cannot find the allocated parts of {}", name_));
    }

    DataRun data_run_;
    std::optional<WritebackWindow> window_;
};

class DeviceBackend final : public RawBackend {
public:
    DeviceBackend(
        UniqueFd fd, const std::string& path, uint64_t size, uint32_t logical_block, bool read_only)
        : RawBackend(std::move(fd), path, size, read_only), logical_block_(logical_block),
          io_(fd_.get(), logical_block, path) {
        unsigned physical = 0;
        prefer_blocks(ioctl(fd_.get(), BLKPBSZGET, &physical) == 0 ? physical : logical_block);
        unsigned short rotational = 0;
        features_.rotational = ioctl(fd_.get(), BLKROTATIONAL, &rotational) == 0 && rotational != 0;
    }

    uint32_t ring_alignment() const override { return logical_block_; }

    void read(void* data, Extent where) override { io_.read(data, where); }

    void write(const void* data, Extent where, bool fua) override { io_.write(data, where, fua); }

    // The kernel promises that a punched range reads as zeroes; the edges are made so.
    bool trim(Extent where, bool fua) override {
        if (!io_.zero(where,
                      [this](Extent blocks) { return attempt(can_punch_, punch, blocks); })) {
            return false;
        }
        flush_if(fua);
        return true;
    }

    void zero(Extent where, bool may_punch, bool fast, bool fua) override {
        io_.zero(where, [this, may_punch, fast](Extent blocks) {
            if (may_punch && attempt(can_punch_, punch, blocks)) {
                return true;
            }
            // The kernel itself writes zeroes out where the device has no command for it.
            if (fast) {
                unsupported("zero quickly");
            }
            if (!attempt(can_zero_range_, zero_range, blocks)) {
                write_zeroes(fd_.get(), blocks, name_);
            }
            return true;
        });
        flush_if(fua);
    }

    void cache(Extent) override {} // nothing is cached: features().can_cache is false

    std::vector<BackendExtent> extents(Extent where, bool) override {
        return {{.length = where.length}};
    }

private:
    uint32_t logical_block_;
    AlignedIo io_;
};

// Removes a file that was made but could not be used.
class CreatedFile {
public:
    explicit CreatedFile(std::string path) : path_(std::move(path)) {}
    CreatedFile(const CreatedFile&) = delete;
    CreatedFile& operator=(const CreatedFile&) = delete;
    ~CreatedFile() {
        if (!path_.empty()) {
            ::unlink(path_.c_str());
        }
    }
    void keep() { path_.clear(); }

private:
    std::string path_;
};

void sync_directory_of(const std::string& path) {
    std::filesystem::path parent = std::filesystem::path(path).parent_path();
    if (parent.empty()) {
        parent = ".";
    }
    const UniqueFd fd(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd || fsync(fd.get()) < 0) {
        throw_errno(fmt::format("cannot make the new file durable in {}", parent.string()));
    }
}

std::unique_ptr<Backend> create_file(const std::string& path, const FileBackendOptions& options) {
    if (options.read_only) {
        throw Error(ErrorKind::usage, fmt::format("{}: cannot be made read-only", path));
    }
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) {
        throw_errno(fmt::format("cannot create {}", path));
    }
    CreatedFile created(path);
    lock_image(fd.get(), ImageUse::write, path);
    struct stat attributes {};
    if (ftruncate(fd.get(), static_cast<off_t>(options.create_size)) < 0 || fsync(fd.get()) < 0 ||
        fstat(fd.get(), &attributes) < 0) {
        throw_errno(fmt::format("cannot make {} {} bytes long", path, options.create_size));
    }
    sync_directory_of(path);
    auto backend = std::make_unique<FileBackend>(std::move(fd), path, attributes, options);
    created.keep();
    return backend;
}

UniqueFd open_existing(const std::string& path, bool device, bool read_only) {
    // A device that is mounted, or opened in this way by another program, is refused.
    const int flags = (read_only ? O_RDONLY : O_RDWR) | (device ? O_DIRECT | O_EXCL : 0);
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY));
    if (!fd && device && errno == EBUSY) {
        throw Error(ErrorKind::refused,
                    fmt::format("{} is in use: it is mounted, or another program has it open for "
                                "itself. Unmount it or stop that program ('lsblk {}' and "
                                "'fuser -v {}' show more)",
                                path,
                                path,
                                path),
                    EBUSY);
    }
    if (!fd) {
        throw_errno(fmt::format("cannot open {}", path));
    }
    return fd;
}

} // namespace

std::unique_ptr<Backend> open_file_backend(const std::string& path,
                                           const FileBackendOptions& options) {
    if (options.create_size > 0) {
        return create_file(path, options);
    }
    struct stat attributes {};
    if (::stat(path.c_str(), &attributes) < 0) {
        throw_errno(fmt::format("cannot open {}", path));
    }
    const bool device = S_ISBLK(attributes.st_mode);
    if (!device && !S_ISREG(attributes.st_mode)) { // to open a FIFO, say, would wait
        throw Error(ErrorKind::usage,
                    fmt::format("{} is neither a regular file nor a block device", path));
    }
    UniqueFd fd = open_existing(path, device, options.read_only);
    lock_image(fd.get(), options.read_only ? ImageUse::read : ImageUse::write, path);
    if (!device) {
        if (fstat(fd.get(), &attributes) < 0) {
            throw_errno(fmt::format("cannot open {}", path));
        }
        return std::make_unique<FileBackend>(std::move(fd), path, attributes, options);
    }
    uint64_t size = 0;
    int logical_block = 0;
    if (ioctl(fd.get(), BLKGETSIZE64, &size) < 0 ||
        ioctl(fd.get(), BLKSSZGET, &logical_block) < 0) {
        throw_errno(fmt::format("cannot get the size of {}", path));
    }
    return std::make_unique<DeviceBackend>(
        std::move(fd), path, size, static_cast<uint32_t>(logical_block), options.read_only);
}

} // namespace drover
