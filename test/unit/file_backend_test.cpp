// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/process.h"
#include "common/unique_fd.h"
#include "nbd-proxy/aligned_io.h"
#include "nbd-proxy/backend.h"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

using namespace drover;

namespace {

using Bytes = std::vector<unsigned char>;

class Directory {
public:
    explicit Directory(const std::string& parent = "/tmp") {
        path_ = parent + "/drover-file-XXXXXX";
        REQUIRE(mkdtemp(path_.data()) != nullptr);
    }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { std::filesystem::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

// From here on the calling thread finds fallocate as it is on a file system that has none. False
// where the kernel does not filter system calls.
bool take_fallocate_away() {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

std::unique_ptr<Backend> create(const std::string& path, uint64_t size, CacheMode cache = {}) {
    return open_file_backend(path, {.cache = cache, .create_size = size});
}

Bytes pattern(uint64_t length, unsigned seed) {
    std::minstd_rand random(seed);
    Bytes bytes(length);
    std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<unsigned char>(random()); });
    return bytes;
}

Bytes read(Backend& backend, Extent where) {
    Bytes bytes(where.length, 0xee);
    backend.read(bytes.data(), where);
    return bytes;
}

uint64_t allocated(const std::string& path) {
    struct stat attributes {};
    REQUIRE(stat(path.c_str(), &attributes) == 0);
    return static_cast<uint64_t>(attributes.st_blocks) * 512;
}

template <typename Call>
int errno_of(const Call& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.sys_errno();
    }
    return 0;
}

// Every kind of change, aligned or not, against a copy in memory.
void compare_with_model(Backend& backend, unsigned seed) {
    std::minstd_rand random(seed);
    const uint64_t size = backend.size();
    Bytes model = read(backend, {0, size});
    for (int i = 0; i < 300; ++i) {
        const uint64_t offset = random() % size;
        const Extent where{offset, 1 + random() % std::min<uint64_t>(size - offset, 50'000)};
        const auto begin = model.begin() + static_cast<ptrdiff_t>(where.offset);
        const auto end = begin + static_cast<ptrdiff_t>(where.length);
        const bool fua = random() % 8 == 0;
        switch (random() % 4) {
        case 0:
            backend.zero(where, random() % 2 == 0, false, fua);
            std::fill(begin, end, 0);
            break;
        case 1:
            backend.trim(where, fua);
            std::fill(begin, end, 0);
            break;
        default:
            const Bytes data = pattern(where.length, random());
            backend.write(data.data(), where, fua);
            std::copy(data.begin(), data.end(), begin);
        }
        const uint64_t from = random() % size;
        const Extent look{from, std::min<uint64_t>(size - from, 70'000)};
        const auto expected = model.begin() + static_cast<ptrdiff_t>(from);
        const Bytes found = read(backend, look);
        REQUIRE(std::equal(found.begin(), found.end(), expected));
    }
    backend.flush();
    REQUIRE(read(backend, {0, size}) == model);
}

// Threads that write neighbouring bytes must not undo each other's.
template <typename Write>
void write_interleaved(uint64_t size, uint64_t piece, const Write& write) {
    std::vector<std::thread> threads;
    for (unsigned n = 0; n < 4; ++n) {
        threads.emplace_back([=] {
            const Bytes data(piece, static_cast<unsigned char>(n + 1));
            for (uint64_t at = n * piece; at + piece <= size; at += 4 * piece) {
                write(data.data(), Extent{at, piece});
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

size_t count_misplaced(const Bytes& bytes, uint64_t piece) {
    size_t wrong = 0;
    for (size_t i = 0; i < bytes.size() / piece * piece; ++i) {
        wrong += bytes[i] != 1 + i / piece % 4;
    }
    return wrong;
}

// A loop device over a new file; none where that is not allowed.
class LoopDevice {
public:
    LoopDevice(const Directory& directory, uint64_t size, unsigned sector) {
        backing = directory / "backing.img";
        create(backing, size);
        const RunResult made =
            losetup({"--find", "--show", "--sector-size", std::to_string(sector), backing});
        if (made.status.success()) {
            path = made.output.substr(0, made.output.find('\n'));
        } else {
            MESSAGE("skipped: no loop device: " << made.output);
        }
    }
    ~LoopDevice() {
        if (!path.empty()) {
            losetup({"--detach", path});
        }
    }
    std::string path, backing;

private:
    static RunResult losetup(std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), "/usr/sbin/losetup");
        return run_command(arguments, {}, std::chrono::seconds(10));
    }
};

} // namespace

TEST_CASE("a new file is sparse, private, of the exact size, and never replaces another") {
    const Directory directory;
    const std::string path = directory / "disk.img";
    const auto backend = create(path, 10 * MiB + 1);
    struct stat attributes {};
    REQUIRE(stat(path.c_str(), &attributes) == 0);
    CHECK(attributes.st_size == 10 * MiB + 1);
    CHECK((attributes.st_mode & 07777) == 0600);
    CHECK(attributes.st_blocks == 0);
    CHECK(backend->size() == 10 * MiB + 1);
    CHECK(errno_of([&] { create(path, 1 * MiB); }) == EEXIST);
    CHECK(backend->size() == std::filesystem::file_size(path));
    CHECK(backend->ring_fd() >= 0);
    CHECK(backend->ring_alignment() == 1);
}

TEST_CASE("what cannot be opened says why") {
    const Directory directory;
    CHECK(errno_of([&] { open_file_backend(directory / "missing", {}); }) == ENOENT);
    CHECK_THROWS_WITH_AS(open_file_backend("/dev/null", {}),
                         "/dev/null is neither a regular file nor a block device",
                         Error);
    const auto backend = create(directory / "disk.img", 1 * MiB);
    CHECK(errno_of([&] { open_file_backend(directory / "disk.img", {}); }) == EBUSY);
}

TEST_CASE("a file holds what was written, zeroed and trimmed, at any offset") {
    for (const char* parent : {"/tmp", "/dev/shm"}) {
        for (const CacheMode cache : {CacheMode::normal, CacheMode::none}) {
            const Directory directory(parent);
            const auto backend = create(directory / "disk.img", 1 * MiB + 12'345, cache);
            compare_with_model(*backend, 1);
        }
    }
}

TEST_CASE("trim and zero give space back where they may, and keep it where they must") {
    for (const char* parent : {"/tmp", "/dev/shm"}) {
        CAPTURE(parent);
        const Directory directory(parent);
        const std::string path = directory / "disk.img";
        const auto backend = create(path, 4 * MiB);
        const Bytes data = pattern(4 * MiB, 2);
        const Extent all{0, 4 * MiB};

        backend->write(data.data(), all, true);
        backend->trim({1 * MiB, 2 * MiB}, false);
        CHECK(allocated(path) <= 2 * MiB + 64 * KiB);
        backend->zero({0, 1 * MiB}, true, true, false);
        CHECK(allocated(path) <= 1 * MiB + 64 * KiB);
        backend->zero(all, true, true, false); // what is a hole stays one
        CHECK(allocated(path) <= 64 * KiB);
        backend->zero(all, false, true, true);
        CHECK(allocated(path) >= 4 * MiB);
        CHECK(read(*backend, all) == Bytes(4 * MiB));
    }
}

TEST_CASE("where the file system cannot zero quickly, fast says so and the rest writes") {
    const Directory directory;
    const std::string path = directory / "disk.img";
    const auto backend = create(path, 1 * MiB);
    const UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
    int flags = 0;
    // ext4 can keep a file in ext2's way, which has no unwritten extents.
    if (ioctl(fd.get(), FS_IOC_GETFLAGS, &flags) < 0 ||
        (flags &= ~FS_EXTENT_FL, ioctl(fd.get(), FS_IOC_SETFLAGS, &flags) < 0)) {
        MESSAGE("skipped: /tmp is not an ext4");
        return;
    }
    const Bytes data = pattern(1 * MiB, 3);
    const Extent all{0, 1 * MiB};
    backend->write(data.data(), all, false);
    CHECK(errno_of([&] { backend->zero(all, false, true, false); }) == EOPNOTSUPP);
    backend->zero(all, false, false, false);
    CHECK(read(*backend, all) == Bytes(1 * MiB));
    CHECK(allocated(path) >= 1 * MiB);
}

TEST_CASE("where the file system cannot punch holes, a trim is taken and changes nothing") {
    const Directory directory;
    const auto backend = create(directory / "disk.img", 1 * MiB);
    const Bytes data = pattern(1 * MiB, 3);
    const Extent all{0, 1 * MiB};
    backend->write(data.data(), all, false);
    bool filtered = false;
    bool done = true;
    std::thread([&] {
        filtered = take_fallocate_away();
        done = backend->trim({64 * KiB, 128 * KiB}, true);
    }).join();
    if (!filtered) {
        MESSAGE("skipped: no system call filters here");
        return;
    }
    CHECK_FALSE(done);
    CHECK(read(*backend, all) == data);
}

TEST_CASE("extents tell holes from data, clipped to what was asked") {
    const Directory directory;
    const auto backend = create(directory / "disk.img", 10 * MiB + 1);
    const Bytes data = pattern(1 * MiB, 4);
    backend->write(data.data(), {2 * MiB, 1 * MiB}, false);
    backend->write(data.data(), {6 * MiB, 1 * MiB}, false);

    const auto all = backend->extents({0, 10 * MiB + 1}, false);
    REQUIRE(all.size() == 5);
    const std::vector<uint64_t> lengths{2 * MiB, 1 * MiB, 3 * MiB, 1 * MiB, 3 * MiB + 1};
    for (size_t i = 0; i < all.size(); ++i) {
        CHECK(all[i].length == lengths[i]);
        CHECK(all[i].hole == (i % 2 == 0));
        CHECK(all[i].zero == all[i].hole);
    }
    const auto one = backend->extents({2 * MiB + 512, 100 * KiB}, true);
    REQUIRE(one.size() == 1);
    CHECK(one[0].length == 100 * KiB);
    CHECK_FALSE(one[0].hole);
    const auto last = backend->extents({10 * MiB, 1}, false);
    REQUIRE(last.size() == 1);
    CHECK(last[0].length == 1);
    CHECK(last[0].hole);
}

TEST_CASE("extents follow what is punched and written, however they are asked for") {
    for (const char* parent : {"/tmp", "/dev/shm"}) {
        const Directory directory(parent);
        constexpr uint64_t unit = 64 * KiB, count = 64;
        const auto backend = create(directory / "disk.img", count * unit);
        std::vector<bool> data(count);
        std::minstd_rand random(8);
        const Bytes bytes = pattern(unit, 9);
        for (int i = 0; i < 2000; ++i) {
            const uint64_t at = random() % count;
            const Extent where{at * unit, unit};
            if (random() % 2 == 0) {
                backend->write(bytes.data(), where, false);
                data[at] = true;
            } else {
                if (random() % 2 == 0) {
                    backend->trim(where, false);
                } else {
                    backend->zero(where, true, false, false);
                }
                data[at] = false;
            }
            const uint64_t look = random() % count;
            const auto found = backend->extents({look * unit, unit}, false);
            REQUIRE(found.size() == 1);
            REQUIRE(found[0].hole == !data[look]);
        }
    }
}

TEST_CASE("cache=none leaves little of what was written in memory") {
    const Directory directory;
    const std::string path = directory / "disk.img";
    const auto backend = create(path, 64 * MiB, CacheMode::none);
    const Bytes data = pattern(1 * MiB, 5);
    for (uint64_t at = 0; at < backend->size(); at += data.size()) {
        backend->write(data.data(), {at, data.size()}, false);
    }
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    void* const map = mmap(nullptr, backend->size(), PROT_READ, MAP_SHARED, fd.get(), 0);
    REQUIRE(map != MAP_FAILED);
    Bytes resident(backend->size() / 4096);
    REQUIRE(mincore(map, backend->size(), resident.data()) == 0);
    munmap(map, backend->size());
    const auto pages =
        std::count_if(resident.begin(), resident.end(), [](auto b) { return b & 1; });
    CHECK(static_cast<uint64_t>(pages) * 4096 <= 16 * MiB);
}

TEST_CASE("a file opened read-only is shared with readers and refuses changes") {
    const Directory directory;
    const std::string path = directory / "disk.img";
    create(path, 1 * MiB);
    const auto first = open_file_backend(path, {.read_only = true});
    const auto second = open_file_backend(path, {.read_only = true});
    CHECK(first->read_only());
    CHECK_FALSE(first->features().can_trim);
    CHECK(errno_of([&] { first->write("x", {0, 1}, false); }) == EBADF);
    CHECK(errno_of([&] { open_file_backend(path, {}); }) == EBUSY);
}

TEST_CASE("unaligned direct writes side by side lose nothing") {
    const Directory directory;
    const std::string path = directory / "disk.img";
    constexpr uint64_t size = 1 * MiB, piece = 1000;
    create(path, size);
    const UniqueFd fd(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
    if (!fd) {
        MESSAGE("skipped: /tmp has no O_DIRECT");
        return;
    }
    AlignedIo io(fd.get(), 4096, path);
    write_interleaved(
        size, piece, [&](const void* data, Extent where) { io.write(data, where, false); });
    Bytes found(size);
    io.read(found.data(), {0, size});
    CHECK(count_misplaced(found, piece) == 0);
}

TEST_CASE("a block device: any alignment, for us alone, zeroes where it was trimmed") {
    for (const unsigned sector : {512u, 4096u}) {
        const Directory directory;
        const LoopDevice device(directory, 4 * MiB, sector);
        if (device.path.empty()) {
            return;
        }
        {
            const auto backend = open_file_backend(device.path, {});
            CHECK(backend->size() == 4 * MiB);
            CHECK(backend->ring_alignment() == sector);
            CHECK(errno_of([&] { open_file_backend(device.path, {}); }) == EBUSY);
            compare_with_model(*backend, sector);
            write_interleaved(1 * MiB, 700, [&](const void* data, Extent where) {
                backend->write(data, where, false);
            });
            CHECK(count_misplaced(read(*backend, {0, 1 * MiB}), 700) == 0);
            backend->zero({0, 4 * MiB}, true, true, true);
            CHECK(allocated(device.backing) <= 64 * KiB);
            CHECK(errno_of([&] { backend->zero({0, 4096}, false, true, false); }) == EOPNOTSUPP);
        }
        CHECK(open_file_backend(device.path, {.read_only = true})->read_only());
    }
}
