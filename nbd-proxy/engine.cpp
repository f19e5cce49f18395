// SPDX-License-Identifier: GPL-2.0-or-later
#include "nbd-proxy/engine.h"

#include "common/error.h"
#include "nbd-proxy/confinement.h"

#include <charconv>
#include <map>

#include <unistd.h>

namespace drover {
namespace {

// For 256 blocks to be read and hashed there, and there may be work to do beside it.
constexpr std::chrono::seconds verify_answer_limit{60};

void check_block_size(uint64_t block_size) {
    if (block_size < 4 * KiB || block_size > MiB || (block_size & (block_size - 1)) != 0) {
        throw Error(
            ErrorKind::usage,
            fmt::format("block size {}: a power of two from 4K to 1M is expected", block_size));
    }
}

} // namespace

Engine::Engine(EngineOptions options) : options_(std::move(options)) {
    check_block_size(options_.block_size);
    std::string image = options_.file;
    if (!options_.state_dir.empty()) {
        RecordStoreOptions store{.image = options_.file,
                                 .state_dir = options_.state_dir,
                                 .destination = options_.destination};
        record_.emplace(store);
        record_->on_change([this] { changed(); });
        image = options_.file.empty() ? "" : record_->image_path();
    }
    if (!options_.file.empty()) {
        FileBackendOptions file{.read_only = options_.read_only, .cache = options_.cache};
        if (options_.destination && ::access(image.c_str(), F_OK) != 0) {
            file.create_size = options_.size;
        }
        backend_ = open_file_backend(image, file);
        if (options_.destination && options_.size != 0 && backend_->size() != options_.size) {
            throw Error(ErrorKind::refused,
                        fmt::format("{} has {} bytes, not {}: it is another disk's; move it away "
                                    "or give the right size",
                                    image,
                                    backend_->size(),
                                    options_.size));
        }
    }
}

Engine::~Engine() = default;

FileAccess Engine::files(const std::string& control_path) const {
    const std::string image =
        record_ && !options_.file.empty() ? record_->image_path() : options_.file;
    return files_of_disk(options_, image, control_path);
}

void Engine::start() {
    if (!options_.uri.empty()) {
        backend_ = open_nbd_backend(
            options_.uri, options_.read_only, options_.reconnect, options_.client_gone);
    }
    const Record record = record_ ? record_->get() : Record{};
    const bool held = record_ && (!may_write(record) || DestinationControl::is_unconfirmed(record));
    disk_ = std::make_unique<Disk>(*backend_, held, options_.client_gone);
    if (!record_) {
        return;
    }
    context_.emplace(
        DiskContext{options_, control_mutex_, *record_, *backend_, *disk_, [this] { changed(); }});
    forwarding_ = std::make_unique<Forwarding>(*context_);
    source_ = std::make_unique<SourceControl>(*context_, *forwarding_);
    destination_ = std::make_unique<DestinationControl>(*context_, *forwarding_);
    destination_->resume();
    if (record.role == Role::fenced || record.role == Role::forwarding) {
        source_->set_aside(); // the process before may not have come to it
    }
    if (record.forward) {
        forwarding_->keep_connecting();
    }
}

void Engine::interrupt() {
    if (source_) {
        source_->interrupt();
        forwarding_->stop();
    }
}

void Engine::on_change(std::function<void()> changed) {
    const std::lock_guard lock(change_mutex_);
    changed_ = std::move(changed);
}

void Engine::changed() {
    // Held during the call: after on_change(nullptr) nobody is in it.
    const std::lock_guard lock(change_mutex_);
    if (changed_) {
        changed_();
    }
}

// --- exports

std::unique_ptr<Export>
Engine::open(const std::string& name, bool read_only, bool remote, bool tls) {
    if (name.empty()) {
        if (remote) {
            throw Error(
                ErrorKind::refused, "the disk itself is served over the unix socket only", EPERM);
        }
        return make_disk_export(*disk_, *backend_, read_only || backend_->read_only());
    }
    if (remote && !tls) {
        throw Error(ErrorKind::refused, "over TCP, TLS is needed", EPERM);
    }
    if (record_) {
        if (auto opened = open_for_peer(name, read_only)) {
            return opened;
        }
    }
    throw Error(ErrorKind::state, fmt::format("there is no export '{}' here now", name), ENOENT);
}

// Null if there is none of this name now.
std::unique_ptr<Export> Engine::open_for_peer(const std::string& name, bool read_only) {
    const Record record = record_->get();
    // Until it is promoted: `state` tells the migration's id, and from then on nothing more comes.
    if ((name == "replica" || name == "state") && record.role == Role::replica) {
        const std::shared_ptr<Replica> replica = destination_->replica();
        return !replica          ? nullptr
               : name == "state" ? make_state_export(replica)
                                 : make_replica_export(replica);
    }
    if (name == "hashes" && !record.uuid.empty()) {
        return make_hashes_export(*backend_,
                                  context_->geometry(),
                                  hash_seed(uuid_bytes(record.uuid)),
                                  destination_->snapshot(),
                                  written_since_promotion(record));
    }
    // nbdkit does not tell whose key opened the connection. The migration's id, which only its two
    // sides know, keeps the disk from a key that was made for another purpose.
    const std::string forward = fmt::format("forward/{}/{}/", record.migration, record.generation);
    const bool owner = may_write(record);
    const bool may_become = record.role == Role::replica && record.stage != Stage::refused;
    if (name.starts_with(forward) && (owner || may_become) && !record.migration.empty()) {
        const std::string number = name.substr(forward.size());
        uint64_t n = 0;
        const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), n);
        if (error != std::errc{} || end != number.data() + number.size()) {
            throw Error(ErrorKind::usage,
                        fmt::format("export '{}': a number is expected at its end", name),
                        EINVAL);
        }
        return make_forward_export(
            make_disk_export(*disk_, *backend_, read_only || backend_->read_only()),
            forward_gate_,
            n,
            [this] { return may_write(record_->get()); });
    }
    return nullptr;
}

// --- control

Engine::Json Engine::call(const std::string& method, const Json& params) {
    if (method == "status") {
        rpc::only_params(params, {});
        return status();
    }
    using Method = std::function<Json(Engine&, const Json&)>;
    const auto at_source = [](Json (SourceControl::*does)(const Json&)) -> Method {
        return [does](Engine& engine, const Json& in) { return (*engine.source_.*does)(in); };
    };
    const auto at_destination = [](Json (DestinationControl::*does)(const Json&)) -> Method {
        return [does](Engine& engine, const Json& in) { return (*engine.destination_.*does)(in); };
    };
    static const std::map<std::string, Method> methods{
        {"prepare", at_destination(&DestinationControl::prepare)},
        {"replicate", at_source(&SourceControl::replicate)},
        {"set", at_source(&SourceControl::set)},
        {"quiesce", at_source(&SourceControl::quiesce)},
        {"fence", at_source(&SourceControl::fence)},
        {"forward", at_source(&SourceControl::forward)},
        {"cancel", at_source(&SourceControl::cancel)},
        {"unfence", at_source(&SourceControl::unfence)},
        {"supersede", at_source(&SourceControl::supersede)},
        {"promote", at_destination(&DestinationControl::promote)},
        {"did_not_run", at_destination(&DestinationControl::did_not_run)},
        {"refuse", at_destination(&DestinationControl::refuse)},
        {"finish", &Engine::finish},
        {"verify", &Engine::verify},
        {"shutdown", &Engine::shutdown}};
    const auto found = methods.find(method);
    if (found == methods.end()) {
        throw Error(ErrorKind::usage, fmt::format("no such method: '{}'", method));
    }
    if (!record_ && method != "shutdown") {
        throw Error(ErrorKind::state,
                    "this disk is served without a state directory: start nbdkit with state=DIR to "
                    "move it");
    }
    return found->second(*this, params);
}

Engine::Json Engine::finish(const Json& params) {
    rpc::only_params(params, {"migration"});
    const std::lock_guard one(control_mutex_);
    const std::string migration = rpc::string_param(params, "migration");
    const Record now = record_->update(
        [&](const Record& record) { return accept(drover::finish(record, migration)); });
    source_->end_stream();
    destination_->forget();
    if (now.role == Role::fenced || now.role == Role::forwarding) {
        record_->fence_image();
    } else {
        destination_->confirm();
    }
    return Json::object();
}

// What differs from the disk that its source has kept; null where nothing is known of it.
std::shared_ptr<WrittenBlocks> Engine::written_since_promotion(const Record& now) const {
    return may_write(now) ? disk_->written() : nullptr;
}

Engine::Json Engine::verify(const Json& params) {
    rpc::only_params(params, {"to"});
    NbdClientOptions peer = peer_options(options_, params.value("to", Json::object()), verify_key);
    peer.export_name = "hashes";
    peer.read_only = true;
    peer.block_status = false;
    peer.request_timeout = verify_answer_limit;
    NbdClient there(peer);
    if (!peer.psk_file.empty()) {
        ::unlink(peer.psk_file.c_str());
    }
    const BlockGeometry blocks = context_->geometry();
    if (there.size() != blocks.blocks() * sizeof(Hash128)) {
        throw Error(ErrorKind::peer, "the other side's disk has another size or block size");
    }
    const Record now = record_->get();
    const auto export_here = make_hashes_export(
        *backend_, blocks, hash_seed(uuid_bytes(now.uuid)), nullptr, written_since_promotion(now));
    // Before the end of a migration its destination knows every hash, and has to tell it; and who
    // has given the disk away has not written it.
    const bool theirs_may_lack = now.stage == Stage::over && !may_write(now);
    constexpr uint64_t step = 256 * sizeof(Hash128);
    std::vector<std::byte> theirs(step), ours(step);
    uint64_t different = 0, written = 0;
    const Hash128 none{}; // it was written since the two parted
    Json first;
    for (uint64_t at = 0; at < there.size(); at += step) {
        const Extent part{at, std::min(step, there.size() - at)};
        there.read(theirs.data(), part);
        export_here->read(ours.data(), part);
        for (uint64_t i = 0; i < part.length; i += sizeof(Hash128)) {
            if (std::memcmp(&ours[i], &none, sizeof none) == 0 ||
                (theirs_may_lack && std::memcmp(&theirs[i], &none, sizeof none) == 0)) {
                ++written;
            } else if (std::memcmp(&theirs[i], &ours[i], sizeof(Hash128)) != 0) {
                if (different++ == 0) {
                    first = (at + i) / sizeof(Hash128) * blocks.block_size;
                }
            }
        }
    }
    return {{"blocks", blocks.blocks()},
            {"different", different},
            {"first_different", first},
            {"written", written}};
}

Engine::Json Engine::shutdown(const Json& params) {
    rpc::only_params(params, {});
    const std::lock_guard one(control_mutex_);
    if (forwarding_) {
        // What was answered has to be safe at the new owner; requests that wait for it are not
        // waited for.
        forwarding_->flush();
    }
    disk_->hold();
    if (source_) {
        source_->end_stream();
        destination_->close_replica();
    }
    try {
        if (!backend_->read_only()) {
            backend_->flush();
        }
    } catch (...) {
        // The clients see what is the matter, rather than wait for a process that goes on.
        if (!record_ || (may_write(record_->get()) && !destination_->unconfirmed())) {
            disk_->release();
        }
        throw;
    }
    const Record now = record_ ? record_->get() : Record{};
    if (record_ && (may_write(now) || (now.role == Role::replica && now.consistent))) {
        record_->mark_clean();
    }
    disk_->close();
    if (forwarding_) {
        forwarding_->stop();
    }
    return Json::object();
}

// --- status

Engine::Json Engine::status() {
    const Record now = record_ ? record_->get() : Record{};
    return {{"version", DROVER_VERSION},
            {"pid", ::getpid()},
            {"image", backend_->name()},
            {"size", backend_->size()},
            {"block_size", options_.block_size},
            {"uuid", now.uuid},
            {"generation", now.generation},
            {"role", record_ ? std::string(drover::to_string(now.role)) : "none"},
            {"stage", record_ ? std::string(drover::to_string(now.stage)) : "idle"},
            {"may_have_run", now.may_have_run},
            {"unconfirmed", destination_ && destination_->unconfirmed()},
            {"migration", now.migration.empty() ? Json() : Json(now.migration)},
            {"clients", clients_.load()},
            {"read_only", options_.read_only || backend_->read_only()},
            {"state_dir", options_.state_dir},
            {"replication", source_ ? source_->status(now) : Json()},
            {"replica", destination_ ? destination_->status(now) : Json()}};
}

} // namespace drover
