// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/process.h"
#include "common/unique_fd.h"
#include "common/units.h"
#include "nbd-proxy/image_lock.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <fcntl.h>

using namespace drover;

namespace {

constexpr std::chrono::seconds limit{10};

struct Image {
    Image() {
        char path[] = "/tmp/drover-lock-XXXXXX";
        REQUIRE(mkdtemp(path) != nullptr);
        directory = path;
        file = directory + "/disk.img";
        std::ofstream(file).close();
        std::filesystem::resize_file(file, 1 * MiB);
    }
    ~Image() { std::filesystem::remove_all(directory); }

    UniqueFd open(ImageUse use) const {
        UniqueFd fd(::open(file.c_str(), (use == ImageUse::write ? O_RDWR : O_RDONLY) | O_CLOEXEC));
        REQUIRE(fd);
        lock_image(fd.get(), use, file);
        return fd;
    }
    ErrorKind refusal(ImageUse use) const {
        try {
            open(use);
        } catch (const Error& error) {
            message = error.what();
            return error.kind();
        }
        FAIL("the lock was not refused");
        return ErrorKind::state;
    }

    std::string directory, file;
    mutable std::string message;
};

RunResult qemu_io(const Image& image, const std::vector<std::string>& arguments) {
    std::vector<std::string> argv{"qemu-io", "-f", "raw"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    argv.push_back(image.file);
    return run_command(argv, {}, limit);
}

// A program of QEMU's that keeps the image open for as long as this lives.
class QemuServer {
public:
    QemuServer(const Image& image, const std::vector<std::string>& arguments) {
        const std::string socket = image.directory + "/qemu.sock";
        SpawnOptions options;
        options.argv = {"qemu-nbd", "--persistent", "--format=raw", "--socket=" + socket};
        options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
        options.argv.push_back(image.file);
        child_ = spawn(options);
        // Its socket is there before it has the image, and a SIGTERM before it answers is lost.
        const std::vector<std::string> ask{"nbdinfo", "--size", "nbd+unix:///?socket=" + socket};
        while (!run_command(ask, {}, limit).status.success()) {
            REQUIRE_FALSE(child_.wait(std::chrono::milliseconds(10)));
        }
    }
    ~QemuServer() {
        child_.signal(SIGKILL); // qemu-nbd loses a SIGTERM that comes before its main loop
        child_.wait();
    }

private:
    Child child_;
};

} // namespace

TEST_CASE("our writer keeps QEMU's writers away, until it closes") {
    const Image image;
    {
        const UniqueFd fd = image.open(ImageUse::write);
        const RunResult write = qemu_io(image, {"-c", "write 0 512"});
        CHECK_FALSE(write.status.success());
        CHECK(write.output.find("lock") != std::string::npos);
        CHECK_FALSE(run_command({"qemu-img", "resize", "-f", "raw", image.file, "2M"}, {}, limit)
                        .status.success());
        // As with a guest of QEMU's: who reads a raw image beside it may see it change.
        CHECK(qemu_io(image, {"-r", "-c", "read 0 512"}).status.success());
    }
    CHECK(qemu_io(image, {"-c", "write 0 512"}).status.success());
}

TEST_CASE("our reader lets QEMU read and keeps its writers away") {
    const Image image;
    const UniqueFd fd = image.open(ImageUse::read);
    CHECK(qemu_io(image, {"-r", "-c", "read 0 512"}).status.success());
    const RunResult write = qemu_io(image, {"-c", "write 0 512"});
    CHECK_FALSE(write.status.success());
    CHECK(write.output.find("\"write\" lock") != std::string::npos);
}

TEST_CASE("a QEMU that writes keeps our readers and writers away") {
    const Image image;
    const QemuServer server(image, {});
    CHECK(image.refusal(ImageUse::write) == ErrorKind::refused);
    CHECK(image.message.find(image.file + " is in use") != std::string::npos);
    CHECK(image.refusal(ImageUse::read) == ErrorKind::refused);
}

TEST_CASE("a QEMU that reads lets us read") {
    const Image image;
    const QemuServer server(image, {"--read-only"});
    CHECK(image.open(ImageUse::read));
}

TEST_CASE("two of ours: readers share, a writer is alone") {
    const Image image;
    {
        const UniqueFd first = image.open(ImageUse::read);
        const UniqueFd second = image.open(ImageUse::read);
        CHECK(image.refusal(ImageUse::write) == ErrorKind::refused);
    }
    const UniqueFd writer = image.open(ImageUse::write);
    CHECK(image.refusal(ImageUse::write) == ErrorKind::refused);
    CHECK(image.refusal(ImageUse::read) == ErrorKind::refused);
    // Opening and closing the file again must not give the locks up, as POSIX locks would.
    UniqueFd(::open(image.file.c_str(), O_RDWR)).reset();
    CHECK(image.refusal(ImageUse::read) == ErrorKind::refused);
}
