// SPDX-License-Identifier: GPL-2.0-or-later
// The C boundary: nbdkit's callbacks, and nothing else. No exception crosses it.
#include "common/error.h"
#include "common/privilege.h"
#include "common/units.h"
#include "nbd-proxy/control_server.h"
#include "nbd-proxy/engine.h"
#include "nbd-proxy/handshake_watch.h"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <shared_mutex>
#include <string>
#include <thread>

#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {

using drover::Error;
using drover::Extent;

// The process's one disk: configured, then started after the fork, then gone in cleanup.
drover::EngineOptions options;
std::string control_path;
bool confined = false;
std::unique_ptr<drover::Engine> engine;
std::unique_ptr<drover::ControlServer> control;
std::unique_ptr<drover::HandshakeWatch> handshakes; // of those that come over a network
// From a connection's accept to the first export that it opens: several round trips, with TLS.
std::chrono::seconds handshake_limit{60};

// Calls body; an exception becomes an error of nbdkit's, with the errno for the client.
template <typename Body>
auto at_c_boundary(const char* where, std::invoke_result_t<Body> failure, Body&& body) noexcept
    -> std::invoke_result_t<Body> {
    int error = EIO;
    try {
        return body();
    } catch (const Error& caught) {
        nbdkit_error("%s: %s", where, caught.what());
        error = caught.sys_errno() != 0 ? caught.sys_errno() : EIO;
    } catch (const std::bad_alloc&) {
        nbdkit_error("%s: out of memory", where);
        error = ENOMEM;
    } catch (const std::exception& caught) {
        nbdkit_error("%s: %s", where, caught.what());
    } catch (...) {
        nbdkit_error("%s: unknown exception", where);
    }
    nbdkit_set_error(error);
    return failure;
}

// The same for callbacks that answer 0 for "done".
template <typename Body>
int done_or_error(const char* where, Body&& body) noexcept {
    return at_c_boundary(where, -1, [&] {
        body();
        return 0;
    });
}

drover::Export& disk(void* handle) {
    return *static_cast<drover::Export*>(handle);
}

[[noreturn]] void usage(const std::string& text) {
    throw Error(drover::ErrorKind::usage, text, EINVAL);
}

uint64_t size_value(const std::string& key, const char* value) {
    const auto size = drover::parse_size(value);
    if (!size) {
        usage(fmt::format("{}={}: a size is expected, as 64K or 10G", key, value));
    }
    return *size;
}

std::chrono::seconds seconds_value(const std::string& key, const char* value) {
    unsigned seconds = 0;
    if (nbdkit_parse_unsigned(key.c_str(), value, &seconds) < 0) {
        usage(fmt::format("{}={}: a number of seconds is expected", key, value));
    }
    return std::chrono::seconds(seconds);
}

std::string path_value(const char* value) {
    const std::unique_ptr<char, decltype(&free)> absolute(nbdkit_absolute_path(value), &free);
    if (!absolute) {
        throw std::bad_alloc();
    }
    return absolute.get();
}

int configure(const char* name, const char* value) noexcept {
    return done_or_error("drover", [&] {
        const std::string key = name;
        const std::string text = value;
        if (key == "file") {
            options.file = path_value(value);
        } else if (key == "uri") {
            options.uri = text;
        } else if (key == "control") {
            control_path = path_value(value);
        } else if (key == "state") {
            options.state_dir = path_value(value);
        } else if (key == "role") {
            if (text != "source" && text != "destination") {
                usage(fmt::format("role={}: source or destination is expected", text));
            }
            options.destination = text == "destination";
        } else if (key == "size") {
            options.size = size_value(key, value);
        } else if (key == "block-size") {
            options.block_size =
                static_cast<uint32_t>(std::min<uint64_t>(size_value(key, value), UINT32_MAX));
        } else if (key == "log-memory") {
            options.log_memory = size_value(key, value);
        } else if (key == "cache") {
            if (text != "default" && text != "none") {
                usage(fmt::format("cache={}: default or none is expected", text));
            }
            options.cache = text == "none" ? drover::CacheMode::none : drover::CacheMode::normal;
        } else if (key == "confine") {
            const int yes = nbdkit_parse_bool(value);
            if (yes < 0) {
                usage(fmt::format("confine={}: yes or no is expected", text));
            }
            confined = yes != 0;
        } else if (key == "reconnect") {
            options.reconnect = seconds_value(key, value);
        } else if (key == "handshake") {
            handshake_limit = seconds_value(key, value);
            if (handshake_limit.count() == 0) {
                usage("handshake=0: nobody could connect over TCP");
            }
        } else {
            usage(fmt::format("unknown parameter '{}': `nbdkit drover --help` lists them", key));
        }
    });
}

int configured() noexcept {
    return done_or_error("drover", [] {
        if (options.file.empty() == options.uri.empty()) {
            usage("give the disk: a raw image or block device, nbdkit drover disk.img, or uri= of "
                  "an NBD server");
        }
        if (options.destination && options.uri.empty() && options.size == 0 &&
            ::access(options.file.c_str(), F_OK) != 0) {
            usage("role=destination makes the image: give its size=, which is the source's");
        }
        if (options.state_dir.empty() && !control_path.empty() && !options.file.empty()) {
            options.state_dir = options.file + ".drover";
        }
        if (options.destination && options.state_dir.empty()) {
            usage("role=destination needs state=DIR (or control=PATH and an image, then it lies "
                  "beside that)");
        }
    });
}

// The disk matters more than a filter.
template <typename Filter>
void confine(const char* what, Filter&& filter) {
    if (!confined) {
        return;
    }
    try {
        filter();
    } catch (const Error& error) {
        nbdkit_error("warning: not confined, %s: %s", what, error.what());
    }
}

// Each connection takes a descriptor, also that of a stranger who is refused at the end, and what
// the disk itself needs (its record is a new file each time) must be left.
void allow_descriptors() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        ::setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int get_ready() noexcept {
    return done_or_error("drover", [] {
        drover::keep_memory_private(); // nbdkit's fork inherits it, and its threads the filter
        confine("calls", [] { drover::forbid_foreign_calls(); });
        allow_descriptors();
        options.client_gone = [] { return nbdkit_nanosleep(0, 0) != 0; };
        engine = std::make_unique<drover::Engine>(options);
    });
}

// After a clean shutdown: nbdkit goes in its own time (it waits for clients that are idle, up to
// some 15 s), and no longer than it takes to remove its socket and pid file.
void leave() {
    static constexpr std::chrono::seconds patience{1};
    ::kill(::getpid(), SIGTERM);
    std::thread([] {
        std::this_thread::sleep_for(patience);
        ::_exit(0);
    }).detach();
}

int after_fork() noexcept {
    return done_or_error("drover", [] {
        // nbdkit has made its socket and pid file, and there is no other thread yet.
        confine("files", [] { drover::confine_files(engine->files(control_path)); });
        engine->start();
        handshakes = std::make_unique<drover::HandshakeWatch>(handshake_limit);
        if (!control_path.empty()) {
            control = std::make_unique<drover::ControlServer>(*engine, control_path, leave);
        }
    });
}

// nbdkit 1.32 waits for its connections before it comes here, but for one that it has only just
// accepted.
std::shared_mutex engine_goes; // exclusively: engine

void cleanup() noexcept {
    if (engine) {
        engine->interrupt();
    }
    control.reset();
    const std::lock_guard lock(engine_goes);
    handshakes.reset();
    engine.reset();
}

// The address of a peer that comes over a network; "" for others. Without one (nbdkit -s) it is
// whoever started us.
std::string remote_peer() {
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    const bool remote = nbdkit_peer_name(reinterpret_cast<sockaddr*>(&peer), &length) == 0 &&
                        peer.ss_family != AF_UNIX;
    return remote ? std::string(reinterpret_cast<const char*>(&peer), length) : std::string();
}

int preconnect(int) noexcept {
    return done_or_error("drover", [] {
        const std::string peer = remote_peer();
        const std::shared_lock lock(engine_goes);
        if (handshakes && !peer.empty()) {
            handshakes->came(peer);
        }
    });
}

void* open_export(int read_only) noexcept {
    return at_c_boundary("drover", static_cast<void*>(nullptr), [&]() -> void* {
        const std::string peer = remote_peer();
        const bool remote = !peer.empty();
        const char* const name = nbdkit_export_name();
        const std::shared_lock lock(engine_goes);
        if (!engine) {
            throw Error(drover::ErrorKind::state, "the disk is being shut down", ESHUTDOWN);
        }
        auto opened =
            engine->open(name != nullptr ? name : "", read_only != 0, remote, nbdkit_is_tls() > 0);
        engine->client_came();
        if (remote) {
            handshakes->opened(peer);
        }
        return opened.release();
    });
}

void close_export(void* handle) noexcept {
    delete static_cast<drover::Export*>(handle);
    engine->client_left();
}

int block_size(void* handle, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) noexcept {
    return done_or_error("block size", [&] {
        const drover::Backend::Features features = disk(handle).features();
        *minimum = features.minimum;
        *preferred = features.preferred;
        *maximum = features.maximum;
    });
}

int extents(
    void* handle, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* found) noexcept {
    return at_c_boundary("extents", -1, [&] {
        for (const drover::BackendExtent& extent :
             disk(handle).extents({offset, count}, (flags & NBDKIT_FLAG_REQ_ONE) != 0)) {
            const uint32_t type =
                (extent.hole ? NBDKIT_EXTENT_HOLE : 0U) | (extent.zero ? NBDKIT_EXTENT_ZERO : 0U);
            if (nbdkit_add_extent(found, offset, extent.length, type) < 0) {
                return -1;
            }
            offset += extent.length;
        }
        return 0;
    });
}

bool fua(uint32_t flags) {
    return (flags & NBDKIT_FLAG_FUA) != 0;
}

const char help[] =
    "[file=]PATH            raw image or block device to serve\n"
    "uri=URI                ... or any NBD server's export, by its NBD URI\n"
    "control=PATH           control socket (JSON-RPC; see `drover ctl`)\n"
    "state=DIR              the disk's record and keys (default, with control=: PATH.drover)\n"
    "role=source|destination  destination: receives the disk (default: source)\n"
    "size=SIZE              destination: the image is made with this size\n"
    "block-size=SIZE        unit of tracking, 4K to 1M (default: 64K)\n"
    "log-memory=SIZE        writes that may wait for the link in memory (default: 64M)\n"
    "cache=default|none     none: keep what is written out of the page cache\n"
    "confine=BOOL           never start a program, mount, open other files, ... (default: no)\n"
    "reconnect=SECONDS      with uri=: how long requests wait for its server (default: 30)\n"
    "handshake=SECONDS      TCP connections that have opened no export by then are ended (default: "
    "60)";

void dump() noexcept {
    std::printf("drover_version=%s\n", DROVER_VERSION);
    std::printf("drover_exports=disk replica state hashes forward\n");
    std::printf("drover_wire_version=%u\n", static_cast<unsigned>(drover::wire_version));
}

// Whether a feature is there, as nbdkit asks for it.
template <bool drover::Backend::Features::*feature>
int has(void* handle) noexcept {
    return at_c_boundary("features", -1, [&] { return disk(handle).features().*feature ? 1 : 0; });
}

using Features = drover::Backend::Features;

nbdkit_plugin plugin = {
    .name = "drover",
    .longname = "Drover: serve a VM's disk, and move it to another site while it is used",
    .version = DROVER_VERSION,
    .description =
        "Tracks and logs the writes of a running VM's disk, streams it to another site, and\n"
        "hands it over there. `drover migrate` drives it; see drover(1).",
    .config = configure,
    .config_complete = configured,
    .config_help = help,
    .open = open_export,
    .close = close_export,
    .get_size = [](void* handle) noexcept { return static_cast<int64_t>(disk(handle).size()); },
    .can_write = [](void* handle) noexcept -> int { return disk(handle).can_write() ? 1 : 0; },
    .can_flush = [](void* handle) noexcept -> int { return disk(handle).can_flush() ? 1 : 0; },
    .is_rotational = has<&Features::rotational>,
    .can_trim = has<&Features::can_trim>,
    .dump_plugin = dump,
    .can_zero = has<&Features::can_zero>,
    .can_fua = [](void* handle) noexcept -> int {
        return disk(handle).can_fua() ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_NONE;
    },
    .pread =
        [](void* handle, void* buffer, uint32_t count, uint64_t offset, uint32_t) noexcept {
            return done_or_error("read", [&] { disk(handle).read(buffer, {offset, count}); });
        },
    .pwrite =
        [](void* handle,
           const void* buffer,
           uint32_t count,
           uint64_t offset,
           uint32_t flags) noexcept {
            return done_or_error("write", [&] {
                disk(handle).write(buffer, {offset, count}, fua(flags));
            });
        },
    .flush =
        [](void* handle, uint32_t) noexcept {
            return done_or_error("flush", [&] { disk(handle).flush(); });
        },
    .trim =
        [](void* handle, uint32_t count, uint64_t offset, uint32_t flags) noexcept {
            return done_or_error("trim", [&] { disk(handle).trim({offset, count}, fua(flags)); });
        },
    .zero =
        [](void* handle, uint32_t count, uint64_t offset, uint32_t flags) noexcept {
            return done_or_error("zero", [&] {
                disk(handle).zero({offset, count},
                                  (flags & NBDKIT_FLAG_MAY_TRIM) != 0,
                                  (flags & NBDKIT_FLAG_FAST_ZERO) != 0,
                                  fua(flags));
            });
        },
    .magic_config_key = "file",
    .can_multi_conn = has<&Features::multi_conn>,
    .can_extents = has<&Features::can_extents>,
    .extents = extents,
    .can_cache = [](void* handle) noexcept -> int {
        return disk(handle).features().can_cache ? NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_NONE;
    },
    .cache =
        [](void* handle, uint32_t count, uint64_t offset, uint32_t) noexcept {
            return done_or_error("cache", [&] { disk(handle).cache({offset, count}); });
        },
    .can_fast_zero = has<&Features::can_fast_zero>,
    .preconnect = preconnect,
    .get_ready = get_ready,
    .after_fork = after_fork,
    .cleanup = cleanup,
    .block_size = block_size,
};

} // namespace

NBDKIT_REGISTER_PLUGIN(plugin)
