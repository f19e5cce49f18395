// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/base_image.h"

#include "migrator/paths.h"
#include "migrator/vm_file.h"
#include "nbd-proxy/image_lock.h"
#include "nbd-proxy/image_marker.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

constexpr size_t longest_path = 4000;
constexpr uint64_t copy_step = 64 * MiB;
constexpr size_t read_step = 1 * MiB;
constexpr const char* seed_suffix = ".seed"; // of a copy that is not complete

[[noreturn]] void refuse(const std::string& image, const std::string& why) {
    throw Error(ErrorKind::refused, fmt::format("base {}: {}", image, why));
}

// The names from the folder of images on.
std::vector<std::string> parts_of(const SiteConfig& site, const std::string& image) {
    if (image.size() > longest_path || image.find('\0') != std::string::npos) {
        throw Error(ErrorKind::refused, "base: that is no path of an image");
    }
    std::string rest = image;
    if (image.starts_with('/')) {
        const std::string folder = site.images.ends_with('/') ? site.images : site.images + "/";
        if (!image.starts_with(folder)) {
            refuse(image,
                   fmt::format("it is not below {} ('images' of {})", site.images, site.path));
        }
        rest = image.substr(folder.size());
    }
    std::vector<std::string> parts;
    for (const auto& part : std::filesystem::path(rest)) {
        if (part == "." || part == ".." || part.empty() || part.is_absolute()) {
            refuse(image, "a path without . and .. is expected");
        }
        parts.push_back(part.string());
    }
    if (parts.empty()) {
        refuse(image, "the path of an image is expected");
    }
    return parts;
}

// Each name in the folder before it, and no link is followed.
UniqueFd open_below(const SiteConfig& site, const std::string& image) {
    const std::vector<std::string> parts = parts_of(site, image);
    UniqueFd at(::open(site.images.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (size_t i = 0; at && i < parts.size(); ++i) {
        const bool last = i + 1 == parts.size();
        // Not to wait for the other end of a FIFO.
        const int flags =
            O_RDONLY | O_NOFOLLOW | O_CLOEXEC | (last ? O_NONBLOCK | O_NOCTTY : O_DIRECTORY);
        at.reset(::openat(at.get(), parts[i].c_str(), flags));
    }
    if (!at) {
        refuse(image, errno == ELOOP ? "a symbolic link is not followed" : std::strerror(errno));
    }
    return at;
}

// Also a VM that is off, and that nobody moves.
void refuse_disk_of_vm(const SiteConfig& site, const std::string& image, const struct stat& is) {
    std::error_code none;
    for (const auto& entry : std::filesystem::directory_iterator(paths().vm_files(), none)) {
        if (entry.path().extension() != ".toml") {
            continue;
        }
        const VmFile vm = load_vm_file(site, entry.path().string(), HostCheck::may_be_missing);
        for (const DiskSpec& disk : vm.disks) {
            struct stat its {};
            if (!disk.store.file.empty() && ::stat(disk.store.file.c_str(), &its) == 0 &&
                its.st_dev == is.st_dev && its.st_ino == is.st_ino) {
                refuse(image, fmt::format("it is disk {} of {}", disk.name, vm.name));
            }
        }
    }
}

bool cannot_copy_so(int error) {
    return error == EXDEV || error == EINVAL || error == EOPNOTSUPP || error == ENOSYS ||
           error == EPERM || error == ETXTBSY;
}

void copy_by_hand(int from, int to, uint64_t begin, uint64_t end, const std::string& path) {
    std::vector<char> buffer(read_step);
    for (uint64_t at = begin; at < end;) {
        const size_t wanted = std::min<uint64_t>(buffer.size(), end - at);
        const ssize_t got = ::pread(from, buffer.data(), wanted, static_cast<off_t>(at));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            throw_errno(fmt::format("reading the base of {}", path), got == 0 ? EIO : errno);
        }
        for (ssize_t done = 0; done < got;) {
            const ssize_t put = ::pwrite(to,
                                         buffer.data() + done,
                                         static_cast<size_t>(got - done),
                                         static_cast<off_t>(at) + done);
            if (put < 0 && errno != EINTR) {
                throw_errno(path);
            }
            done += std::max<ssize_t>(put, 0);
        }
        at += static_cast<uint64_t>(got);
    }
}

void copy_extent(int from, int to, uint64_t begin, uint64_t end, const std::string& path) {
    while (begin < end) {
        auto in = static_cast<off_t>(begin), out = static_cast<off_t>(begin);
        const ssize_t copied =
            ::copy_file_range(from, &in, to, &out, std::min(copy_step, end - begin), 0);
        if (copied < 0 && errno == EINTR) {
            continue;
        }
        if (copied < 0 && !cannot_copy_so(errno)) {
            throw_errno(path);
        }
        if (copied <= 0) {
            copy_by_hand(from, to, begin, end, path);
            return;
        }
        begin += static_cast<uint64_t>(copied);
    }
}

void copy_data(int from, int to, uint64_t size, const std::string& path) {
    for (uint64_t at = 0; at < size;) {
        const off_t data = ::lseek(from, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) {
            return; // holes to the end
        }
        const off_t hole = data < 0 ? data : ::lseek(from, data, SEEK_HOLE);
        const bool told = data >= 0 && hole >= 0;
        const uint64_t begin = told ? static_cast<uint64_t>(data) : at;
        const uint64_t end = told ? std::min(static_cast<uint64_t>(hole), size) : size;
        if (begin >= size) {
            return;
        }
        copy_extent(from, to, begin, end, path);
        at = end;
    }
}

void fill(int base, int to, uint64_t size, const std::string& path) {
    struct stat info {};
    if (::fstat(base, &info) != 0) {
        throw_errno(path);
    }
    if (::ioctl(to, FICLONE, base) != 0) {
        copy_data(base, to, std::min(static_cast<uint64_t>(info.st_size), size), path);
    }
    // Where it is longer it is cut off, where it is shorter there are zeroes behind it.
    if (::ftruncate(to, static_cast<off_t>(size)) != 0 || ::fsync(to) != 0) {
        throw_errno(path);
    }
}

} // namespace

UniqueFd open_base(const SiteConfig& site, const std::string& image, const std::string& uuid) {
    if (image.ends_with(seed_suffix)) {
        refuse(image, "it is a copy that is being made for another disk");
    }
    UniqueFd fd = open_below(site, image);
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) {
        throw_errno(image);
    }
    if (!S_ISREG(info.st_mode)) {
        refuse(image, "it is not a regular file");
    }
    const std::string path = image.starts_with('/') ? image : site.images + "/" + image;
    const auto marker = read_marker(fmt::format("/proc/self/fd/{}", fd.get()), path);
    if (marker && marker->uuid != uuid) {
        refuse(image, "it is marked as another disk, of a VM that is or was here");
    }
    refuse_disk_of_vm(site, image, info);
    lock_image(fd.get(), ImageUse::read, path);
    return fd;
}

void seed_image(int base, const std::string& path, uint64_t size) {
    const std::string aside = path + seed_suffix;
    if (::unlink(aside.c_str()) != 0 && errno != ENOENT) {
        throw_errno(aside); // of one that was killed
    }
    const UniqueFd to(
        ::open(aside.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (!to) {
        throw_errno(aside);
    }
    try {
        fill(base, to.get(), size, path);
        if (::link(aside.c_str(), path.c_str()) != 0) { // not over one that has come meanwhile
            throw_errno(path);
        }
    } catch (...) {
        ::unlink(aside.c_str());
        throw;
    }
    ::unlink(aside.c_str());
    sync_directory(std::filesystem::path(path).parent_path());
}

} // namespace drover
