// SPDX-License-Identifier: GPL-2.0-or-later
// XenHost by libxl, libxlu, libxenctrl and libxenstore: the only place that knows them.
#include "common/error.h"
#include "migrator/drivers/xen_host.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

extern "C" {
#include <libxl.h>
#include <libxl_utils.h>
#include <libxlutil.h>
#include <xenctrl.h>
#include <xenstore.h>
}

namespace drover {
namespace {

constexpr const char* note_name = "drover";

// What libxl says on its way: the last error explains a failure.
class Log {
public:
    Log() {
        base_.vtable.vmessage = take_message;
        base_.vtable.progress = take_progress;
        base_.vtable.destroy = [](xentoollog_logger*) {};
        base_.self = this;
    }
    xentoollog_logger* logger() { return &base_.vtable; }
    void clear() {
        const std::lock_guard lock(mutex_);
        errors_.clear();
        passes_ = 0;
    }
    // The first says what went wrong, those behind it what followed.
    std::string errors() const {
        const std::lock_guard lock(mutex_);
        return errors_;
    }
    unsigned passes() const { return passes_; }

private:
    struct Base {
        xentoollog_logger vtable{};
        Log* self = nullptr;
    };
    static Log& self(xentoollog_logger* logger) { return *reinterpret_cast<Base*>(logger)->self; }

    static void take_message(xentoollog_logger* logger,
                             xentoollog_level level,
                             int error,
                             const char*,
                             const char* format,
                             va_list arguments) {
        constexpr size_t longest = 1000;
        if (level < XTL_ERROR) {
            return;
        }
        std::array<char, 400> line{};
        std::vsnprintf(line.data(), line.size(), format, arguments);
        Log& log = self(logger);
        const std::lock_guard lock(log.mutex_);
        if (log.errors_.size() < longest) {
            log.errors_ += log.errors_.empty() ? "" : "; ";
            log.errors_ += line.data();
            log.errors_ += error >= 0 ? fmt::format(" ({})", std::strerror(error)) : "";
        }
    }

    static void take_progress(xentoollog_logger* logger,
                              const char*,
                              const char* doing,
                              int,
                              unsigned long,
                              unsigned long) {
        constexpr std::string_view name = "iteration ";
        const std::string_view text = doing == nullptr ? "" : doing;
        if (const size_t at = text.find(name); at != std::string_view::npos) {
            self(logger).passes_ =
                static_cast<unsigned>(std::atoi(text.data() + at + name.size())) + 1;
        }
    }

    Base base_;
    mutable std::mutex mutex_;
    std::string errors_;
    std::atomic<unsigned> passes_{0};
};

// A context of libxl with its own log.
class Context {
public:
    Context() {
        if (libxl_ctx_alloc(&context_, LIBXL_VERSION, 0, log_.logger()) != 0) {
            context_ = nullptr;
            fail("libxl_ctx_alloc", ERROR_FAIL);
        }
        // Children that are not libxl's are none of its business.
        static const libxl_childproc_hooks hooks{
            libxl_sigchld_owner_libxl_always_selective_reap, nullptr, nullptr};
        libxl_childproc_setmode(context_, &hooks, nullptr);
    }
    ~Context() { libxl_ctx_free(context_); }
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    libxl_ctx* get() const { return context_; }
    Log& log() { return log_; }

    [[noreturn]] void fail(const char* call, int result) const {
        const std::string said = log_.errors();
        throw Error(
            result == ERROR_ABORTED ? ErrorKind::cancelled : ErrorKind::state,
            fmt::format("{}: {}", call, said.empty() ? fmt::format("error {}", result) : said));
    }
    void check(const char* call, int result) const {
        if (result != 0) {
            fail(call, result);
        }
    }

private:
    Log log_;
    libxl_ctx* context_ = nullptr;
};

class DomainConfig {
public:
    DomainConfig() { libxl_domain_config_init(&config); }
    ~DomainConfig() { libxl_domain_config_dispose(&config); }
    DomainConfig(const DomainConfig&) = delete;
    DomainConfig& operator=(const DomainConfig&) = delete;
    libxl_domain_config config;
};

struct CloseXenctrl {
    void operator()(xc_interface* handle) const { xc_interface_close(handle); }
};
struct CloseXenstore {
    void operator()(xs_handle* handle) const { xs_close(handle); }
};
struct Free {
    void operator()(char* text) const { std::free(text); }
};

constexpr std::array<std::pair<libxl_domain_type, const char*>, 3> types{
    {{LIBXL_DOMAIN_TYPE_PV, "pv"}, {LIBXL_DOMAIN_TYPE_PVH, "pvh"}, {LIBXL_DOMAIN_TYPE_HVM, "hvm"}}};

std::string uuid_text(const libxl_uuid& uuid) {
    std::array<char, LIBXL_UUID_FMTLEN + 1> text{};
    std::snprintf(text.data(), text.size(), LIBXL_UUID_FMT, LIBXL_UUID_BYTES(uuid));
    return text.data();
}

std::string text_of(const char* text) {
    return text == nullptr ? "" : text;
}

// libxl frees it.
char* copy_of(const std::string& text) {
    return text.empty() ? nullptr : ::strdup(text.c_str());
}

// Of a kind that needs something here that would not be there.
void add_obstacles(const libxl_domain_config& config, std::vector<std::string>& found) {
    const std::array<std::pair<int, const char*>, 14> kinds{
        {{config.num_pcidevs, "PCI device"},
         {config.num_rdms, "reserved memory"},
         {config.num_dtdevs, "device"},
         {config.num_vfbs, "framebuffer"},
         {config.num_vkbs, "keyboard"},
         {config.num_vtpms, "TPM"},
         {config.num_p9s, "shared folder"},
         {config.num_pvcallsifs, "PV calls"},
         {config.num_vdispls, "display"},
         {config.num_vsnds, "sound card"},
         {config.num_channels, "channel"},
         {config.num_usbctrls, "USB"},
         {config.num_usbdevs, "USB device"},
         {config.b_info.num_vnuma_nodes, "virtual NUMA node"}}};
    for (const auto& [count, name] : kinds) {
        if (count > 0) {
            found.push_back(fmt::format("it has a {}, which stays behind", name));
        }
    }
    if (config.c_info.type == LIBXL_DOMAIN_TYPE_HVM) {
        found.emplace_back("it is an HVM guest, whose device model is not moved: PV and PVH are");
    }
    const libxl_defbool forbidden = config.b_info.disable_migrate;
    if (!libxl_defbool_is_default(forbidden) && libxl_defbool_val(forbidden)) {
        found.emplace_back("its configuration forbids it ('nomigrate')");
    }
}

class LibxlHost : public XenHost {
public:
    explicit LibxlHost(std::unique_ptr<xc_interface, CloseXenctrl> control)
        : control_(std::move(control)) {}

    XenConfig read_config(const std::string& path) override;
    std::optional<uint32_t> find(const std::string& name) override;
    XenDomain describe(uint32_t domain) override;
    XenState state(uint32_t domain) override;
    bool can_track(uint32_t domain) override;
    std::optional<uint64_t> dirty_pages(uint32_t domain) override;
    unsigned passes() const override { return long_log_.passes(); }
    void save(uint32_t domain, int fd) override;
    void resume(uint32_t domain) override;
    void restore(const XenDomain& as, const XenScripts& scripts, int fd, uint32_t& domain) override;
    void interrupt() override;
    void rename(uint32_t domain, const std::string& from, const std::string& to) override;
    void unpause(uint32_t domain) override;
    void destroy(uint32_t domain) override;
    void set_note(uint32_t domain, const std::string& text) override;
    std::string note(uint32_t domain) override;

private:
    Context& calls() {
        calls_.log().clear();
        return calls_;
    }
    Context& long_call() {
        long_.log().clear();
        return long_;
    }
    void wait_for_suspend_request(uint32_t domain);
    std::optional<xc_domaininfo_t> info(uint32_t domain);

    std::unique_ptr<xc_interface, CloseXenctrl> control_;
    Context calls_, long_; // long_: the one call that interrupt() ends
    Log& long_log_ = long_.log();
};

std::optional<uint32_t> LibxlHost::find(const std::string& name) {
    uint32_t domain = 0;
    if (libxl_name_to_domid(calls().get(), name.c_str(), &domain) != 0) {
        return std::nullopt;
    }
    return domain;
}

XenDomain LibxlHost::describe(uint32_t domain) {
    Context& context = calls();
    DomainConfig holder;
    const libxl_domain_config& config = holder.config;
    context.check(
        "libxl_retrieve_domain_configuration",
        libxl_retrieve_domain_configuration(context.get(), domain, &holder.config, nullptr));
    XenDomain found;
    found.name = text_of(config.c_info.name);
    found.uuid = uuid_text(config.c_info.uuid);
    for (const auto& [type, name] : types) {
        found.type = type == config.c_info.type ? name : found.type;
    }
    found.memory_kib = config.b_info.target_memkb;
    found.max_memory_kib = config.b_info.max_memkb;
    found.vcpus = static_cast<unsigned>(config.b_info.max_vcpus);
    for (int i = 0; i < config.num_disks; ++i) {
        const libxl_device_disk& disk = config.disks[i];
        found.disks.push_back({text_of(disk.vdev), text_of(disk.pdev_path)});
        if (disk.is_cdrom != 0 || disk.readwrite == 0) {
            found.obstacles.push_back(
                fmt::format("its disk {} is a CD-ROM or read-only", text_of(disk.vdev)));
        }
    }
    for (int i = 0; i < config.num_nics; ++i) {
        const libxl_device_nic& nic = config.nics[i];
        found.nics.push_back(
            {fmt::format("{:02x}", fmt::join(nic.mac, nic.mac + 6, ":")), text_of(nic.bridge)});
    }
    add_obstacles(config, found.obstacles);
    return found;
}

// nullopt: there is no such domain. The call gives the next one then.
std::optional<xc_domaininfo_t> LibxlHost::info(uint32_t domain) {
    xc_domaininfo_t found{};
    const int count = xc_domain_getinfolist(control_.get(), domain, 1, &found);
    if (count < 0) {
        throw_errno("xc_domain_getinfolist");
    }
    return count == 1 && found.domain == domain ? std::optional(found) : std::nullopt;
}

XenState LibxlHost::state(uint32_t domain) {
    const auto found = info(domain);
    if (!found || (found->flags & XEN_DOMINF_dying) != 0) {
        return XenState::ended;
    }
    if ((found->flags & XEN_DOMINF_shutdown) != 0) {
        const unsigned reason =
            (found->flags >> XEN_DOMINF_shutdownshift) & XEN_DOMINF_shutdownmask;
        return reason == SHUTDOWN_suspend ? XenState::suspended : XenState::ended;
    }
    return (found->flags & XEN_DOMINF_paused) != 0 ? XenState::paused : XenState::runs;
}

bool LibxlHost::can_track(uint32_t domain) {
    const auto shadow = [&](unsigned operation) {
        return xc_shadow_control(control_.get(), domain, operation, nullptr, 0);
    };
    if (shadow(XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY) != 0) {
        return errno != EOPNOTSUPP;
    }
    shadow(XEN_DOMCTL_SHADOW_OP_OFF);
    return true;
}

// Without a bitmap to fill it only reads the counts, so the save is not disturbed.
std::optional<uint64_t> LibxlHost::dirty_pages(uint32_t domain) {
    xc_hypercall_buffer_t none{};
    xc_shadow_op_stats_t counts{};
    if (xc_logdirty_control(
            control_.get(), domain, XEN_DOMCTL_SHADOW_OP_PEEK, &none, 0, 0, &counts) < 0) {
        return std::nullopt;
    }
    return counts.dirty_count;
}

void LibxlHost::save(uint32_t domain, int fd) {
    Context& context = long_call();
    context.check("libxl_domain_suspend",
                  libxl_domain_suspend(context.get(), domain, fd, LIBXL_SUSPEND_LIVE, nullptr));
}

void LibxlHost::interrupt() {
    libxl_ao_abort(long_.get(), nullptr);
}

// A save whose process was killed may have just asked the guest to suspend itself. It will; and had
// we looked before, nobody would let it go on.
void LibxlHost::wait_for_suspend_request(uint32_t domain) {
    constexpr std::chrono::milliseconds moment(20);
    constexpr int most_moments = 500;
    const std::unique_ptr<xs_handle, CloseXenstore> store(xs_open(0));
    const std::string path = fmt::format("/local/domain/{}/control/shutdown", domain);
    for (int i = 0; store && i < most_moments && state(domain) != XenState::suspended; ++i) {
        const std::unique_ptr<char, Free> asked(
            static_cast<char*>(xs_read(store.get(), XBT_NULL, path.c_str(), nullptr)));
        if (!asked || std::string_view(asked.get()) != "suspend") {
            return;
        }
        std::this_thread::sleep_for(moment);
    }
}

void LibxlHost::resume(uint32_t domain) {
    wait_for_suspend_request(domain);
    if (state(domain) == XenState::suspended) {
        Context& context = calls();
        context.check("libxl_domain_resume",
                      libxl_domain_resume(context.get(), domain, 1, nullptr));
    }
    // A killed save has left it on, which slows the guest.
    xc_shadow_control(control_.get(), domain, XEN_DOMCTL_SHADOW_OP_OFF, nullptr, 0);
}

void LibxlHost::restore(const XenDomain& as, const XenScripts& scripts, int fd, uint32_t& domain) {
    Context& context = long_call();
    DomainConfig holder;
    libxl_domain_config& config = holder.config;
    for (const auto& [type, name] : types) {
        config.c_info.type = as.type == name ? type : config.c_info.type;
    }
    config.c_info.name = copy_of(as.name);
    if (libxl_uuid_from_string(&config.c_info.uuid, as.uuid.c_str()) != 0) {
        throw Error(ErrorKind::usage, fmt::format("'{}' is no UUID", as.uuid));
    }
    libxl_domain_build_info_init_type(&config.b_info, config.c_info.type);
    config.b_info.max_vcpus = static_cast<int>(as.vcpus);
    context.check(
        "libxl_cpu_bitmap_alloc",
        libxl_cpu_bitmap_alloc(context.get(), &config.b_info.avail_vcpus, config.b_info.max_vcpus));
    libxl_bitmap_set_any(&config.b_info.avail_vcpus);
    config.b_info.max_memkb = as.max_memory_kib;
    config.b_info.target_memkb = as.memory_kib;

    config.disks = static_cast<libxl_device_disk*>(
        std::calloc(std::max<size_t>(as.disks.size(), 1), sizeof(libxl_device_disk)));
    for (const XenDisk& each : as.disks) {
        libxl_device_disk& disk = config.disks[config.num_disks++];
        libxl_device_disk_init(&disk);
        disk.backend = LIBXL_DISK_BACKEND_PHY;
        disk.format = LIBXL_DISK_FORMAT_RAW;
        disk.vdev = copy_of(each.vdev);
        disk.pdev_path = copy_of(each.path);
        disk.script = copy_of(scripts.disk);
        disk.readwrite = 1;
    }
    config.nics = static_cast<libxl_device_nic*>(
        std::calloc(std::max<size_t>(as.nics.size(), 1), sizeof(libxl_device_nic)));
    for (const XenNic& each : as.nics) {
        libxl_device_nic& nic = config.nics[config.num_nics];
        libxl_device_nic_init(&nic);
        nic.devid = config.num_nics++;
        nic.nictype = LIBXL_NIC_TYPE_VIF;
        nic.bridge = copy_of(each.bridge);
        nic.script = copy_of(scripts.nic);
        for (size_t i = 0; i < sizeof nic.mac; ++i) {
            nic.mac[i] = static_cast<uint8_t>(std::stoul(each.mac.substr(3 * i, 2), nullptr, 16));
        }
    }
    libxl_domain_restore_params parameters;
    libxl_domain_restore_params_init(&parameters);
    parameters.stream_version = 2;
    const int result = libxl_domain_create_restore(
        context.get(), &config, &domain, fd, -1, &parameters, nullptr, nullptr);
    libxl_domain_restore_params_dispose(&parameters);
    context.check("libxl_domain_create_restore", result);
}

void LibxlHost::rename(uint32_t domain, const std::string& from, const std::string& to) {
    Context& context = calls();
    context.check("libxl_domain_rename",
                  libxl_domain_rename(context.get(), domain, from.c_str(), to.c_str()));
}

void LibxlHost::unpause(uint32_t domain) {
    Context& context = calls();
    context.check("libxl_domain_unpause", libxl_domain_unpause(context.get(), domain, nullptr));
}

void LibxlHost::destroy(uint32_t domain) {
    if (!info(domain)) {
        return;
    }
    Context& context = calls();
    context.check("libxl_domain_destroy", libxl_domain_destroy(context.get(), domain, nullptr));
}

void LibxlHost::set_note(uint32_t domain, const std::string& text) {
    Context& context = calls();
    context.check("libxl_userdata_store",
                  libxl_userdata_store(context.get(),
                                       domain,
                                       note_name,
                                       reinterpret_cast<const uint8_t*>(text.data()),
                                       static_cast<int>(text.size())));
}

std::string LibxlHost::note(uint32_t domain) {
    Context& context = calls();
    uint8_t* data = nullptr;
    int size = 0;
    context.check("libxl_userdata_retrieve",
                  libxl_userdata_retrieve(context.get(), domain, note_name, &data, &size));
    const std::unique_ptr<char, Free> text(reinterpret_cast<char*>(data));
    return text ? std::string(text.get(), static_cast<size_t>(size)) : "";
}

// --- xl's configuration

class XlConfig {
public:
    explicit XlConfig(const std::string& path)
        : path_(path), report_(std::tmpfile()), config_(xlu_cfg_init(report_, path.c_str())) {
        if (report_ == nullptr || config_ == nullptr) {
            throw_errno(path);
        }
    }
    ~XlConfig() {
        xlu_cfg_destroy(config_);
        std::fclose(report_);
    }
    XlConfig(const XlConfig&) = delete;
    XlConfig& operator=(const XlConfig&) = delete;
    XLU_Config* get() const { return config_; }

    // An errno of libxlu's.
    void check(int error, const char* what) const {
        if (error == 0) {
            return;
        }
        std::string said;
        std::rewind(report_);
        for (int c = std::fgetc(report_); c != EOF; c = std::fgetc(report_)) {
            said += c == '\n' ? ' ' : static_cast<char>(c);
        }
        throw Error(
            ErrorKind::usage,
            fmt::format("{}: {}: {}", path_, what, said.empty() ? std::strerror(error) : said));
    }

private:
    std::string path_;
    std::FILE* report_;
    XLU_Config* config_;
};

XenConfig LibxlHost::read_config(const std::string& path) {
    const XlConfig file(path);
    file.check(xlu_cfg_readfile(file.get(), path.c_str()), "it can't be read");
    XenConfig found;
    const char* name = nullptr;
    file.check(xlu_cfg_get_string(file.get(), "name", &name, 0), "'name'");
    found.name = name;
    XLU_ConfigList* list = nullptr;
    int count = 0;
    const int error = xlu_cfg_get_list(file.get(), "disk", &list, &count, 0);
    file.check(error == ESRCH ? 0 : error, "'disk'");
    for (int i = 0; error == 0 && i < count; ++i) {
        const char* const text = xlu_cfg_get_listitem(list, i);
        libxl_device_disk disk;
        libxl_device_disk_init(&disk);
        const int wrong = text == nullptr ? EINVAL : xlu_disk_parse(file.get(), 1, &text, &disk);
        XenDisk entry{text_of(disk.vdev), text_of(disk.pdev_path)};
        libxl_device_disk_dispose(&disk);
        file.check(wrong, "'disk'");
        found.disks.push_back(std::move(entry));
    }
    return found;
}

} // namespace
} // namespace drover

extern "C" __attribute__((visibility("default"))) drover::XenHost*
drover_open_xen_host_1(std::string& error) {
    try {
        std::unique_ptr<xc_interface, drover::CloseXenctrl> control(
            xc_interface_open(nullptr, nullptr, 0));
        if (!control) {
            error = fmt::format("xc_interface_open: {}", std::strerror(errno));
            return nullptr;
        }
        return new drover::LibxlHost(std::move(control));
    } catch (const std::exception& failure) {
        error = failure.what();
        return nullptr;
    }
}
