// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/kernel_disk.h"

#include "common/error.h"
#include "common/secrets.h"
#include "common/unique_fd.h"
#include "common/unix_socket.h"
#include "migrator/paths.h"

#include <array>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include <endian.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace drover {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

// What a restart of the disk's server may take before the guest sees an error.
constexpr uint64_t server_outage_s = 600;
constexpr uint64_t sector = 512;
constexpr milliseconds moment{10};
// Of these in a row without a request.
constexpr int quiet_moments = 5;
constexpr int most_moments = 1000, patience_moments = 300;

[[noreturn]] void fail(const std::string& what) {
    throw Error(ErrorKind::io, "the kernel's nbd: " + what);
}

// --- the handshake of NBD, whose connection the kernel then takes

struct Export {
    uint64_t size = 0;
    uint16_t flags = 0;
    uint64_t block_size = sector;
};

void send_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            throw_errno("NBD handshake");
        }
        bytes.remove_prefix(static_cast<size_t>(std::max<ssize_t>(sent, 0)));
    }
}

std::string receive(int fd, size_t size) {
    std::string bytes(size, '\0');
    size_t have = 0;
    while (have < size) {
        const ssize_t got = ::recv(fd, bytes.data() + have, size - have, 0);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            throw Error(ErrorKind::io, "NBD handshake: the disk's server does not answer");
        }
        have += static_cast<size_t>(std::max<ssize_t>(got, 0));
    }
    return bytes;
}

// Big-endian, from `at`.
template <typename Number>
Number number(const std::string& bytes, size_t at) {
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(Number); ++i) {
        value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
    }
    return static_cast<Number>(value);
}

template <typename Number>
void append(std::string& bytes, Number value) {
    for (size_t i = sizeof(Number); i-- > 0;) {
        bytes += static_cast<char>(static_cast<uint64_t>(value) >> (8 * i) & 0xff);
    }
}

constexpr uint32_t option_go = 7, reply_ack = 1, reply_info = 3;
constexpr uint16_t info_export = 0, info_block_size = 3;

Export negotiate(int fd) {
    const timeval limit{10, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (receive(fd, 18).substr(0, 16) != "NBDMAGICIHAVEOPT") {
        throw Error(ErrorKind::io, "NBD handshake: no server that knows options");
    }
    std::string request;
    append(request, uint32_t{3}); // fixed newstyle, no padding
    request += "IHAVEOPT";
    append(request, option_go);
    append(request, uint32_t{8}); // bytes that follow
    append(request, uint32_t{0}); // the export ""
    append(request, uint16_t{1}); // one more thing is asked for
    append(request, info_block_size);
    send_all(fd, request);
    Export found;
    for (;;) {
        const std::string head = receive(fd, 20); // magic, option, type, length
        const auto type = number<uint32_t>(head, 12), length = number<uint32_t>(head, 16);
        if (length > 4096) {
            throw Error(ErrorKind::io, "NBD handshake: an answer that is too long");
        }
        const std::string data = receive(fd, length);
        if (type == reply_ack) {
            break;
        }
        if (type != reply_info) {
            throw Error(ErrorKind::io, fmt::format("NBD handshake: answer {:#x}", type));
        }
        const auto what = number<uint16_t>(data, 0);
        if (what == info_export) {
            found.size = number<uint64_t>(data, 2);
            found.flags = number<uint16_t>(data, 10);
        } else if (what == info_block_size) {
            found.block_size = std::max<uint64_t>(number<uint32_t>(data, 2), sector);
        }
    }
    const timeval none{0, 0};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    return found;
}

// --- the kernel's side, by netlink

class NbdLink {
public:
    NbdLink() : socket_(nl_socket_alloc(), nl_socket_free) {
        if (!socket_ || genl_connect(socket_.get()) != 0) {
            fail("no netlink socket");
        }
        family_ = genl_ctrl_resolve(socket_.get(), NBD_GENL_FAMILY_NAME);
        if (family_ < 0) {
            fail("it is not there: load the module nbd (modprobe nbd max_part=0)");
        }
    }

    // A free device, or with an index that one again. Its index.
    int connect(std::optional<int> index, int fd, const Export& served, const std::string& owner) {
        const Message message(nlmsg_alloc(), nlmsg_free);
        nl_msg* const raw = message.get();
        genlmsg_put(raw,
                    NL_AUTO_PORT,
                    NL_AUTO_SEQ,
                    family_,
                    0,
                    0,
                    index ? NBD_CMD_RECONFIGURE : NBD_CMD_CONNECT,
                    NBD_GENL_VERSION);
        if (index) {
            nla_put_u32(raw, NBD_ATTR_INDEX, static_cast<uint32_t>(*index));
        } else {
            nla_put_u64(raw, NBD_ATTR_SIZE_BYTES, served.size);
            nla_put_u64(raw, NBD_ATTR_BLOCK_SIZE_BYTES, served.block_size);
            nla_put_u64(raw, NBD_ATTR_SERVER_FLAGS, served.flags);
        }
        nla_put_u64(raw, NBD_ATTR_DEAD_CONN_TIMEOUT, server_outage_s);
        nla_put_string(raw, NBD_ATTR_BACKEND_IDENTIFIER, owner.c_str());
        nlattr* const sockets = nla_nest_start(raw, NBD_ATTR_SOCKETS);
        nlattr* const item = nla_nest_start(raw, NBD_SOCK_ITEM);
        nla_put_u32(raw, NBD_SOCK_FD, static_cast<uint32_t>(fd));
        nla_nest_end(raw, item);
        nla_nest_end(raw, sockets);
        index_ = index.value_or(-1);
        send(raw);
        return index_;
    }

    void disconnect(int index) {
        const Message message(nlmsg_alloc(), nlmsg_free);
        genlmsg_put(message.get(),
                    NL_AUTO_PORT,
                    NL_AUTO_SEQ,
                    family_,
                    0,
                    0,
                    NBD_CMD_DISCONNECT,
                    NBD_GENL_VERSION);
        nla_put_u32(message.get(), NBD_ATTR_INDEX, static_cast<uint32_t>(index));
        send(message.get());
    }

private:
    using Message = std::unique_ptr<nl_msg, void (*)(nl_msg*)>;

    // Until the kernel has said that it is done.
    void send(nl_msg* message) {
        nl_socket_modify_cb(socket_.get(), NL_CB_VALID, NL_CB_CUSTOM, &NbdLink::take, this);
        if (const int error = nl_send_auto(socket_.get(), message); error < 0) {
            fail(nl_geterror(error));
        }
        // The acknowledgement, and before it what CONNECT answers.
        if (const int error = nl_wait_for_ack(socket_.get()); error < 0) {
            fail(nl_geterror(error));
        }
    }

    static int take(nl_msg* message, void* self) {
        std::array<nlattr*, NBD_ATTR_MAX + 1> found{};
        if (genlmsg_parse(nlmsg_hdr(message), 0, found.data(), NBD_ATTR_MAX, nullptr) == 0 &&
            found[NBD_ATTR_INDEX] != nullptr) {
            static_cast<NbdLink*>(self)->index_ =
                static_cast<int>(nla_get_u32(found[NBD_ATTR_INDEX]));
        }
        return NL_OK;
    }

    std::unique_ptr<nl_sock, void (*)(nl_sock*)> socket_;
    int family_ = -1;
    int index_ = -1;
};

std::string sysfs(int index, const char* name) {
    return fmt::format("/sys/block/nbd{}/{}", index, name);
}

std::string read_line(const std::string& path) {
    std::string text;
    try {
        text = read_file(path);
    } catch (const Error&) {
        return ""; // a device that is not connected has none
    }
    return text.substr(0, text.find('\n'));
}

std::optional<int> find_device(const std::string& owner) {
    std::error_code none;
    for (const auto& entry : fs::directory_iterator("/sys/block", none)) {
        const std::string name = entry.path().filename();
        if (name.starts_with("nbd")) {
            const int index = std::atoi(name.c_str() + 3);
            if (read_line(sysfs(index, "backend")) == owner) {
                return index;
            }
        }
    }
    return std::nullopt;
}

std::string device_of(int index) {
    return fmt::format("/dev/nbd{}", index);
}

void make_link(const std::string& link, const std::string& device) {
    const std::string next = link + ".new";
    ::unlink(next.c_str());
    if (::symlink(device.c_str(), next.c_str()) != 0 || ::rename(next.c_str(), link.c_str()) != 0) {
        throw_errno(link);
    }
}

UniqueFd open_device(const std::string& device, int flags) {
    UniqueFd fd(::open(device.c_str(), flags | O_CLOEXEC));
    if (!fd) {
        throw_errno(device);
    }
    return fd;
}

// The kernel sees the end of the old connection a moment after its server has ended.
void reconnect(int index, const std::string& socket) {
    for (int tries = 0;; ++tries) {
        const UniqueFd fd = connect_unix(socket);
        const Export served = negotiate(fd.get());
        try {
            NbdLink().connect(index, fd.get(), served, socket);
            return;
        } catch (const Error&) {
            if (tries == patience_moments) {
                throw;
            }
        }
        std::this_thread::sleep_for(moment);
    }
}

} // namespace

std::string attach_kernel_disk(const std::string& vm, const std::string& disk) {
    const std::string socket = paths().disk_socket(vm, disk);
    const std::string link = paths().disk_device(vm, disk);
    auto index = find_device(socket);
    if (!index) {
        const UniqueFd fd = connect_unix(socket);
        const Export served = negotiate(fd.get());
        index = NbdLink().connect(std::nullopt, fd.get(), served, socket);
        if (find_device(socket) != index) {
            NbdLink().disconnect(*index);
            throw Error(ErrorKind::refused,
                        "the kernel's nbd does not keep whose a device is: Linux 5.14 is needed");
        }
    }
    make_link(link, device_of(*index));
    return link;
}

void reconnect_kernel_disk(const std::string& vm, const std::string& disk) {
    const std::string socket = paths().disk_socket(vm, disk);
    if (const auto index = find_device(socket)) {
        reconnect(*index, socket);
    }
}

void detach_kernel_disk(const std::string& vm, const std::string& disk) {
    const std::string link = paths().disk_device(vm, disk);
    if (const auto index = find_device(paths().disk_socket(vm, disk))) {
        const std::string device = device_of(*index);
        UniqueFd alone;
        // Whoever has just ended may not have let go of it yet.
        for (int tries = 0; !alone; ++tries) {
            try {
                alone = open_device(device, O_RDWR | O_EXCL);
            } catch (const Error& error) {
                if (error.sys_errno() != EBUSY || tries == patience_moments) {
                    throw Error(ErrorKind::state,
                                fmt::format("{}, the disk {} of {}, is in use: {}",
                                            device,
                                            disk,
                                            vm,
                                            error.what()));
                }
            }
            std::this_thread::sleep_for(moment);
        }
        if (::fsync(alone.get()) != 0) {
            throw_errno(device);
        }
        alone.reset();
        NbdLink().disconnect(*index);
    }
    if (::unlink(link.c_str()) != 0 && errno != ENOENT) {
        throw_errno(link);
    }
}

void settle_kernel_disk(const std::string& device) {
    const std::string name = fs::canonical(device).filename();
    const std::string folder = "/sys/block/" + name;
    // What the back end had taken before the guest stopped still comes; there is no event for its
    // end. Should one come later all the same, it voids the handover, and nothing is lost.
    std::string before;
    int quiet = 0;
    for (int i = 0; quiet < quiet_moments; ++i) {
        if (i == most_moments) {
            throw Error(ErrorKind::timeout,
                        fmt::format("{}: requests are under way that do not end", device));
        }
        const std::string now = read_line(folder + "/stat");
        unsigned reads = 1, writes = 1;
        const std::string inflight = read_line(folder + "/inflight");
        if (std::sscanf(inflight.c_str(), "%u %u", &reads, &writes) != 2) {
            throw Error(ErrorKind::io, fmt::format("{}/inflight: \"{}\"", folder, inflight));
        }
        quiet = reads + writes == 0 && now == before ? quiet + 1 : 0;
        before = now;
        std::this_thread::sleep_for(moment);
    }
    const UniqueFd fd = open_device(device, O_RDWR);
    if (::fsync(fd.get()) != 0 || ::ioctl(fd.get(), BLKFLSBUF) != 0) {
        throw_errno(device);
    }
}

void forget_cached(const std::string& device) {
    const UniqueFd fd = open_device(device, O_RDONLY);
    if (::ioctl(fd.get(), BLKFLSBUF) != 0) {
        throw_errno(device);
    }
}

} // namespace drover
