// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/destination_disk.h"

#include "migrator/base_image.h"
#include "migrator/ctl.h"
#include "migrator/paths.h"
#include "migrator/takeover.h"
#include "nbd-proxy/record_store.h"

#include <filesystem>
#include <utility>

#include <asio/co_spawn.hpp>

#include <sys/stat.h>
#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

// Plugin calls that write no more than a record. `finish` and `refuse` close the image's streams.
constexpr milliseconds call_patience{30000};

std::string migration_user(const std::string& migration) {
    return "migration-" + migration.substr(0, 16);
}

bool exists(const std::string& path) {
    return ::access(path.c_str(), F_OK) == 0;
}

bool is_link(const std::string& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode);
}

// An image of the folder of images lies in there, whatever somebody has put in its place.
void refuse_links(const std::string& image) {
    for (const std::string& path : {std::filesystem::path(image).parent_path().string(), image}) {
        if (is_link(path)) {
            throw Error(ErrorKind::refused,
                        fmt::format("{} is a symbolic link: an image elsewhere is named in the "
                                    "VM's file in {}",
                                    path,
                                    paths().vm_files()));
        }
    }
}

} // namespace

DestinationDisk::DestinationDisk(asio::any_io_executor executor,
                                 const SiteConfig& site,
                                 std::string vm,
                                 VmDescription::Disk disk,
                                 Events events)
    : executor_(std::move(executor)), site_(site), vm_(std::move(vm)), disk_(std::move(disk)),
      events_(std::move(events)), restarted_(executor_) {}

DestinationDisk::~DestinationDisk() {
    events_ = {};
    if (control_) {
        control_->close("the agent ends");
    }
}

DiskStore DestinationDisk::store() const {
    return destination_store(site_, vm_, disk_.name);
}

bool DestinationDisk::is_in_images() const {
    return store().file == fmt::format("{}/{}/{}.img", site_.images, vm_, disk_.name);
}

void DestinationDisk::check() const {
    const DiskStore where = store();
    const std::string label = fmt::format("disk {}/{}", vm_, disk_.name);
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    if (record && may_write(*record)) {
        throw Error(
            ErrorKind::refused,
            fmt::format("{} is this host's own already (role {}, generation {}): it can't come "
                        "from elsewhere; if it is to be given up, move {} out of {} and its image "
                        "away",
                        label,
                        to_string(record->role),
                        record->generation,
                        paths().disk_state(vm_, disk_.name),
                        paths().vm_state(vm_)));
    }
    // Its name is all that the peer has of it: what is here is another one's.
    if (record && !record->uuid.empty() && record->uuid != disk_.uuid) {
        throw Error(ErrorKind::refused,
                    fmt::format("{} of this host is another disk than the peer's: choose another "
                                "name, or move {} and its image away",
                                label,
                                paths().disk_state(vm_, disk_.name)));
    }
    if (is_in_images()) {
        refuse_links(where.file);
    }
    if (is_in_images() && !record && exists(where.file)) {
        throw Error(
            ErrorKind::refused,
            fmt::format("{} is there already, and no migration is known to have left it: move "
                        "it away, or name it in {}/{}.toml if it may be overwritten",
                        where.file,
                        paths().vm_files(),
                        vm_));
    }
    if (!base_.empty()) {
        if (!is_in_images()) {
            throw Error(ErrorKind::refused,
                        fmt::format("{}: a base is for images that are made in {}; this disk goes "
                                    "where {}/{}.toml says",
                                    label,
                                    site_.images,
                                    paths().vm_files(),
                                    vm_));
        }
        open_base(site_, base_, disk_.uuid);
    }
    read_disk_note(vm_, disk_.name); // it could not be replaced
    // What an agent that was killed left behind is a replica; anything else is a disk in use.
    if (!record && find_served(vm_, disk_.name)) {
        throw Error(
            ErrorKind::state,
            fmt::format("{} is being served here: `drover serve {} --stop` ends that", label, vm_));
    }
}

uint64_t DestinationDisk::generation() const {
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    return record ? record->generation : 0;
}

ServeDisk DestinationDisk::serve_disk() const {
    ServeDisk serve;
    serve.name = disk_.name;
    serve.store = store();
    serve.role = ServeRole::destination;
    serve.size = disk_.size;
    serve.block_size = disk_.block_size;
    serve.port = served_.port; // the source may know it
    return serve;
}

asio::awaitable<void> DestinationDisk::start() {
    const ServeDisk serve = serve_disk();
    const bool ours = std::exchange(running_, true); // also if it fails on its way
    std::function<void()> work = [this, serve] { served_ = start_disk(site_, vm_, serve); };
    co_await on_a_thread(std::move(work));
    running_ = ours || !served_.already; // not one that was only asked here
    connect();
}

void DestinationDisk::connect() {
    RpcPeer::Events events;
    events.on_close = [this](const std::string& reason) { ended(reason); };
    control_ = connect_peer(
        executor_, "disk " + disk_.name, paths().disk_control(vm_, disk_.name), std::move(events));
}

void DestinationDisk::ended(const std::string& reason) {
    if (!events_.lost) {
        return;
    }
    const std::string what = fmt::format("disk {}: its nbdkit has ended ({}); its log is {}",
                                         disk_.name,
                                         reason,
                                         paths().disk_log(vm_, disk_.name));
    if (used_ || !restarts_.worth_it(Clock::now())) {
        std::exchange(events_, {}).lost(what);
        return;
    }
    events_.restarts(what);
    restart();
}

// The stream goes on from what is durable here.
void DestinationDisk::restart() {
    restarting_ = true;
    const auto served = std::make_shared<ServedDisk>();
    std::function<void()> work = [&site = site_, vm = vm_, serve = serve_disk(), served] {
        *served = start_disk(site, vm, serve);
    };
    auto done = [this, alive = std::weak_ptr(alive_), served](std::exception_ptr failure) {
        if (alive.expired()) {
            return;
        }
        restarting_ = false;
        try {
            if (failure) {
                std::rethrow_exception(failure);
            }
            const uint16_t known = std::exchange(served_, *served).port;
            connect();
            if (served_.port != known) {
                throw Error(ErrorKind::io,
                            fmt::format("disk {}: its port {} has been taken", disk_.name, known));
            }
        } catch (const std::exception& error) {
            if (events_.lost) {
                std::exchange(events_, {}).lost(error.what());
            }
        }
        restarted_.notify();
    };
    asio::co_spawn(executor_, on_a_thread(std::move(work)), std::move(done));
}

asio::awaitable<void> DestinationDisk::settled() {
    while (restarting_) {
        co_await restarted_.wait_until(no_deadline);
    }
}

asio::awaitable<void>
DestinationDisk::prepare(std::string migration, uint64_t generation, std::string key) {
    check();
    migration_ = migration;
    // Also one that a killed agent left: check() has seen that it is no disk of a VM here.
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    const bool replica = record && record->role == Role::replica;
    const bool created = is_in_images() && !keeps_ && (replica || !exists(store().file));
    const bool seeded = !base_.empty() && !has_old_image() && !exists(store().file);
    created_ = created && !seeded; // not before it is: somebody else may make a file of that name
    running_ = true;
    std::function<void()> stop = [this] { stop_disk(site_, vm_, disk_.name); }; // of such an agent
    co_await on_a_thread(std::move(stop));
    remove_verify_keys(vm_, disk_.name);
    if (seeded) {
        co_await seed();
        created_ = created;
    }
    co_await start();
    Json params{{"migration", migration},
                {"generation", generation},
                {"uuid", disk_.uuid},
                {"block_size", disk_.block_size}};
    const Json answer = co_await call("prepare", std::move(params));
    refusal_hash_ = answer.at("refusal_hash").get<std::string>();
    empty_ = answer.at("empty").get<bool>();
    user_ = migration_user(migration);
    add_psk_key(vm_, disk_.name, user_, key);
}

asio::awaitable<void> DestinationDisk::seed() const {
    std::function<void()> work =
        [&site = site_, base = base_, uuid = disk_.uuid, size = disk_.size, image = store().file] {
            const UniqueFd from = open_base(site, base, uuid);
            make_directories(std::filesystem::path(image).parent_path(), 0755);
            seed_image(from.get(), image, size);
        };
    co_await on_a_thread(std::move(work));
}

void DestinationDisk::attach(const std::string& migration) {
    migration_ = migration;
    user_ = migration_user(migration);
    events_ = {};
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    if (!record || record->migration != migration) {
        return;
    }
    created_ = is_in_images() && !keeps_ && record->role == Role::replica;
    running_ = record->role == Role::replica;
}

asio::awaitable<DiskStanding> DestinationDisk::standing() {
    co_return recorded_standing(vm_, disk_.name);
}

DiskStanding recorded_standing(const std::string& vm, const std::string& disk) {
    const auto record = peek_record(paths().disk_state(vm, disk));
    return record ? standing_in(*record) : DiskStanding();
}

Json standing_json(const std::string& name, const DiskStanding& standing) {
    return {{"name", name},
            {"role", to_string(standing.role)},
            {"stage", to_string(standing.stage)},
            {"generation", standing.generation},
            {"migration", standing.migration},
            {"may_have_run", standing.may_have_run}};
}

bool DestinationDisk::is_of_this_migration() const {
    return !migration_.empty() && recorded_standing(vm_, disk_.name).migration == migration_;
}

void DestinationDisk::require_this_migration() const {
    if (!is_of_this_migration()) {
        throw Error(ErrorKind::state,
                    fmt::format("disk {}/{}: nothing of this migration is here", vm_, disk_.name));
    }
}

void DestinationDisk::add_forward_key(const std::string& key) {
    require_this_migration();
    forward_user_ = "forward-" + migration_.substr(0, 16);
    forward_key_ = key;
    add_psk_key(vm_, disk_.name, forward_user_, key);
}

// A disk that is not served any more is served again: what is asked of it is for its record.
asio::awaitable<Json> DestinationDisk::call(std::string method, Json params) {
    if (method != "prepare" && method != "refuse") {
        require_this_migration();
    }
    co_await settled();
    if (!control_ || control_->closed()) {
        co_await start();
    }
    Json answer = co_await control_->call(std::move(method), std::move(params), call_patience);
    co_return answer;
}

asio::awaitable<void> DestinationDisk::promote(std::string token) {
    used_ = true;
    Json params{{"migration", migration_}, {"token", token}};
    co_await call("promote", std::move(params));
    running_ = created_ = false; // a disk of this host's
}

asio::awaitable<void> DestinationDisk::did_not_run() {
    Json params{{"migration", migration_}};
    co_await call("did_not_run", std::move(params));
}

asio::awaitable<std::string> DestinationDisk::refuse() {
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    if (!record || migration_.empty()) {
        co_return std::string(); // it never came to a record of this migration, or that is lost
    }
    if (const auto token = refusal_token_of(*record, migration_)) {
        co_return *token;
    }
    Json params{{"migration", migration_}};
    const Json answer = co_await call("refuse", std::move(params));
    const bool mine = record->migration == migration_;
    created_ = is_in_images() && !keeps_ && mine;
    running_ = running_ || mine;
    co_return answer.at("refusal_token").get<std::string>();
}

bool DestinationDisk::promoted_here() const {
    try {
        ControlClient client(paths().disk_control(vm_, disk_.name));
        const Json status = client.call("status", Json::object(), call_patience);
        return status.value("unconfirmed", Json(true)) == Json(false);
    } catch (const Error&) {
        return false; // it is started anew when it is asked for
    }
}

asio::awaitable<void> DestinationDisk::promote_by_force() {
    Json params{{"migration", migration_}, {"force", true}};
    co_await call("promote", std::move(params));
    running_ = created_ = false;
}

asio::awaitable<void> DestinationDisk::supersede(uint64_t generation) {
    Json params{{"migration", migration_}, {"generation", generation}};
    co_await call("supersede", std::move(params));
}

bool DestinationDisk::is_consistent() const {
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    return record && record->migration == migration_ && record->role == Role::replica &&
           record->stage != Stage::refused && record->consistent;
}

asio::awaitable<void> DestinationDisk::put_down() {
    events_ = {};
    remove_key();
    if (!forward_user_.empty()) {
        remove_psk_key(vm_, disk_.name, forward_user_);
    }
    co_await settled();
    if (control_) {
        control_->close("the migration ends");
    }
    if (std::exchange(running_, false)) {
        std::function<void()> stop = [this] { stop_disk(site_, vm_, disk_.name); };
        co_await on_a_thread(std::move(stop));
    }
}

asio::awaitable<void> DestinationDisk::remove() {
    co_await put_down();
    if (keeps_) {
        set_aside();
    }
    if (!created_) {
        co_return;
    }
    const std::filesystem::path image = store().file;
    std::error_code error;
    std::filesystem::remove(image, error);
    if (error) {
        throw Error(ErrorKind::io, fmt::format("removing {}: {}", image.string(), error.message()));
    }
    // The VM's folder of images, if this was the last of them.
    if (::rmdir(image.parent_path().c_str()) != 0 && errno != ENOTEMPTY && errno != EEXIST &&
        errno != ENOENT) {
        throw_errno(image.parent_path().string());
    }
}

// What is in it is a mixture of two moments by now, which the next migration compares with; nobody
// else is to find it.
void DestinationDisk::set_aside() const {
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    if (!record || may_write(*record) || record->stage != Stage::refused) {
        return;
    }
    try {
        const RecordStoreOptions options{.image = store().file,
                                         .state_dir = paths().disk_state(vm_, disk_.name),
                                         .destination = true};
        RecordStore::open(options).set_aside();
    } catch (const Error& error) {
        // A client of a disk that forwards is served on; that process does it when it starts anew.
        if (error.kind() != ErrorKind::state) {
            throw;
        }
    }
}

bool DestinationDisk::has_old_image() const {
    const auto record = peek_record(paths().disk_state(vm_, disk_.name));
    if (!record) {
        return false;
    }
    // Set aside, or about to be when the host died.
    const bool let_go = record->role == Role::fenced || record->role == Role::forwarding;
    return (!record->fenced_image.empty() && exists(record->fenced_image)) ||
           (let_go && exists(store().file));
}

asio::awaitable<void> DestinationDisk::finish() {
    events_ = {};
    remove_key();
    Json params{{"migration", migration_}};
    co_await call("finish", std::move(params));
}

void DestinationDisk::remove_key() {
    if (!user_.empty()) {
        remove_psk_key(vm_, disk_.name, user_);
        user_.clear();
    }
}

asio::awaitable<Json> DestinationDisk::status() {
    Json none = Json::object();
    return call("status", std::move(none));
}

Json DestinationDisk::description() const {
    return {{"name", disk_.name},
            {"port", served_.port},
            {"psk_user", user_},
            {"refusal_hash", refusal_hash_},
            {"created", created_},
            {"empty", empty_}};
}

Json DestinationDisk::forward_description() const {
    return {{"name", disk_.name},
            {"port", served_.port},
            {"psk_user", forward_user_},
            {"psk_key", forward_key_}};
}

} // namespace drover
