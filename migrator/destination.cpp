// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/destination.h"

#include "common/secrets.h"
#include "migrator/agent_params.h"
#include "migrator/command_template.h"
#include "migrator/paths.h"
#include "migrator/segment.h"
#include "migrator/tunnels.h"
#include "nbd-proxy/record_store.h"

#include <algorithm>
#include <filesystem>

namespace drover {
namespace {

using rpc::Json;

constexpr const char* memory_user = "migration-memory";
constexpr const char* tunnel_user = "migration-tunnel";
constexpr milliseconds destroy_patience{15000};
constexpr milliseconds run_patience{20000};
constexpr milliseconds adopt_patience{5000};
// Another agent of the same migration is told to end, and cleans up before it does.
constexpr milliseconds displace_patience{20000};

// An agent's journal is there to help a recovery; one that can't be gone on with does not stop it.
std::unique_ptr<StepLog> journal_of(const std::string& path, const std::string& migration) {
    const auto content = read_journal(path);
    if (content && content->text("migration") == migration) {
        return Journal::go_on(path);
    }
    return std::make_unique<NoJournal>();
}

} // namespace

// The hypervisor, once there is one, as takeover.h has it.
class Destination::Vm : public VmAtDestination {
public:
    explicit Vm(IncomingVm& driver) : driver_(driver) {}
    bool ready() const override { return driver_.ready(); }
    bool may_have_run() const override { return driver_.may_have_run(); }
    asio::awaitable<void> run(bool paused) override { return driver_.run(paused, run_patience); }
    asio::awaitable<void> destroy() override { return driver_.destroy(destroy_patience); }

private:
    IncomingVm& driver_;
};

Destination::Destination(asio::any_io_executor executor,
                         const SiteConfig& site,
                         std::string acts_as,
                         Lost lost,
                         Warn warn)
    : executor_(std::move(executor)), site_(site), acts_as_(std::move(acts_as)),
      lost_(std::move(lost)), warn_(std::move(warn)) {}

Destination::~Destination() = default;

void Destination::require_acting(const char* method) const {
    if (stage_ != Stage::acting) {
        throw Error(
            ErrorKind::state,
            fmt::format("{}: {}",
                        method,
                        stage_ == Stage::blank ? "nothing was prepared" : "the migration is over"));
    }
}

void Destination::require_not_promoted(const char* method) const {
    require_acting(method);
    if (takeover_->promoted()) {
        throw Error(ErrorKind::state, fmt::format("{}: it was promoted already", method));
    }
}

bool Destination::is_forgotten(const RunLock& lock) {
    const auto holder = lock.holder();
    return holder && holder->what == "agent" && lock.untouched_for() > longest_silence;
}

void Destination::heard() const {
    if (lock_) {
        lock_->touch();
    }
}

// One agent for a VM; the lock ends with this process. Of the same migration the last one to come
// acts: the way to the one before has been lost. So it has for one of another migration that has
// long heard nothing, however patient it was told to be.
asio::awaitable<void> Destination::lock(milliseconds patience) {
    make_directories(paths().vm_state(vm_.name), 0700);
    lock_.emplace(paths().agent_lock(vm_.name));
    bool locked = lock_->try_lock(acts_as_);
    if (const auto holder = locked ? std::nullopt : lock_->holder()) {
        const bool same = holder->migration == migration_ && patience.count() != 0;
        if (same || is_forgotten(*lock_)) {
            co_await end_process(holder->pid, holder->started, displace_patience);
            patience = displace_patience;
        }
    }
    if (!locked && patience.count() != 0) {
        locked = co_await lock_->lock_within(acts_as_, patience);
    }
    if (!locked) {
        throw Error(ErrorKind::state,
                    fmt::format("another migration of {} to this host is under way", vm_.name));
    }
    lock_->note_migration(migration_);
}

DestinationDisk::Events Destination::disk_events() const {
    return {[this](const std::string& detail) { lost_("disk-exited", detail); },
            [this](const std::string& what) { warn_(what + "; it is started again"); }};
}

void Destination::make_disks() {
    disks_.clear();
    for (const VmDescription::Disk& disk : vm_.disks) {
        disks_.push_back(
            std::make_unique<DestinationDisk>(executor_, site_, vm_.name, disk, disk_events()));
    }
}

// Also where the peer names other disks than those that it has here: its sockets, its monitor and
// its file are the VM's.
void Destination::refuse_own_vm() const {
    std::error_code none;
    for (const auto& entry :
         std::filesystem::directory_iterator(paths().vm_state(vm_.name), none)) {
        const auto record =
            entry.is_directory(none) ? peek_record(entry.path().string()) : std::nullopt;
        if (record && may_write(*record)) {
            throw Error(ErrorKind::refused,
                        fmt::format("{} is a VM of this host already (disk {}, generation {}): it "
                                    "can't come from elsewhere; if that disk is to be given up, "
                                    "move {} out of {} and its image away",
                                    vm_.name,
                                    entry.path().filename().string(),
                                    record->generation,
                                    entry.path().string(),
                                    paths().vm_state(vm_.name)));
        }
    }
}

void Destination::set_bases(const Json& bases) {
    if (!bases.is_object()) {
        throw Error(ErrorKind::usage, "parameter 'bases': an object is expected");
    }
    for (const auto& item : bases.items()) {
        const Json& image = item.value();
        const auto disk = std::find_if(disks_.begin(), disks_.end(), [&](const auto& each) {
            return each->name() == item.key();
        });
        if (disk == disks_.end() || !image.is_string()) {
            throw Error(ErrorKind::usage,
                        "parameter 'bases': paths by the names of disks are expected");
        }
        (*disk)->use_base(image.get<std::string>());
    }
}

// Images that are here from before the migration, or were when an agent that is gone began it.
void Destination::find_old_images() {
    const auto journal = read_journal(paths().journal(vm_.name));
    const Json kept = journal && journal->text("side") == "destination"
                          ? journal->facts.value("kept", Json::array())
                          : Json::array();
    for (const auto& disk : disks_) {
        if (disk->has_old_image() ||
            std::find(kept.begin(), kept.end(), Json(disk->name())) != kept.end()) {
            disk->keep_image();
        }
    }
}

// Whether this host has heard of the migration. Its id, which only the two sides of it know, is
// what lets a peer have a say about a VM that is here.
bool Destination::is_known_here() const {
    const auto journal = read_journal(paths().journal(vm_.name));
    return (journal && journal->text("migration") == migration_) ||
           std::any_of(disks_.begin(), disks_.end(), [](const auto& disk) {
               return disk->is_of_this_migration();
           });
}

Json Destination::check(const Json& params) {
    rpc::only_params(params, {"vm", "disk_only", "bases"});
    if (stage_ != Stage::blank) {
        throw Error(ErrorKind::state, "check: a migration is under way");
    }
    disk_only_ = rpc::bool_param(params, "disk_only", false);
    vm_ = check_description(site_, params.value("vm", Json()), disk_only_);
    make_disks();
    set_bases(params.value("bases", Json::object()));
    uint64_t generation = 0;
    refuse_own_vm();
    require_arrived_vm_file(paths().arrived_vm_file(vm_.name), vm_.name);
    if (vm_.stretched) {
        require_bridges(addressed(vm_.nics));
    }
    for (const auto& disk : disks_) {
        disk->check();
        generation = std::max(generation, disk->generation());
    }
    return {{"generation", generation}, {"at_home", has_tunnel(tunnel_ends(vm_.name), true)}};
}

// Nothing is changed: it may be asked at any time before `prepare`.
asio::awaitable<Json> Destination::look_at_segment(Json params) {
    rpc::only_params(params, {"vm", "nonce"});
    if (stage_ != Stage::blank) {
        throw Error(ErrorKind::state, "segment: a migration is under way");
    }
    const auto nonce = tunnel::parse_nonce(rpc::string_param(params, "nonce"));
    const VmDescription vm = check_description(site_, params.value("vm", Json()), false);
    if (!nonce || !vm.stretched) {
        throw Error(ErrorKind::usage, "segment: a nonce, and a VM that is to stay in its segment");
    }
    const std::vector<NicSpec> nics = addressed(vm.nics);
    Json answer{{"nics", Json::array()}};
    std::function<void()> work = [nics, nonce, &answer] {
        const std::vector<bool> answered = ask_for_vm(nics, *nonce);
        for (size_t i = 0; i < nics.size(); ++i) {
            answer["nics"].push_back({{"name", nics[i].mac}, {"answered", bool(answered[i])}});
        }
    };
    co_await on_a_thread(std::move(work));
    co_return answer;
}

asio::awaitable<Json> Destination::prepare(Json params) {
    rpc::only_params(params, {"migration", "generation", "vm", "psk_key", "disk_only", "bases"});
    migration_ = hex_param(params, "migration", 32);
    psk_key_ = hex_param(params, "psk_key", 64);
    const uint64_t generation = rpc::uint_param(params, "generation");
    Json facts{{"vm", params.value("vm", Json())},
               {"disk_only", rpc::bool_param(params, "disk_only", false)}};
    Json checked = facts;
    checked["bases"] = params.value("bases", Json::object());
    check(checked);
    const milliseconds at_once(0);
    co_await lock(at_once);
    co_await end_leftover();
    find_old_images();
    facts["migration"] = migration_;
    facts["generation"] = generation;
    facts["kept"] = Json::array();
    for (const auto& disk : disks_) {
        if (disk->keeps_image()) {
            facts["kept"].push_back(disk->name());
        }
    }
    journal_ = Journal::create(paths().journal(vm_.name), "destination", facts);
    co_await journal_->step(JournalStep::prepare);
    stage_ = Stage::acting; // whatever happens now is undone by a refusal
    make_takeover();
    Json answer{{"disks", Json::array()}, {"memory", nullptr}};
    for (const auto& disk : disks_) {
        co_await disk->prepare(migration_, generation, psk_key_);
        answer["disks"].push_back(disk->description());
    }
    if (has_hypervisor()) {
        memory_port_ = listen_tcp(site_);
        memory_port_number_ = memory_port_->port;
        Json memory{{"port", memory_port_number_}, {"psk_user", memory_user}};
        answer["memory"] = std::move(memory);
    }
    co_return answer;
}

// What an agent of another migration has left here when it was killed. No disk of this VM belongs
// to this host, so nothing of it can be in use.
asio::awaitable<void> Destination::end_leftover() {
    const auto left = read_journal(paths().journal(vm_.name));
    if (!left || left->over()) {
        co_return;
    }
    if (left->text("side") != "destination") {
        throw Error(ErrorKind::state,
                    fmt::format("a migration of {0} from this host has not come to its end: "
                                "`drover recover {0}` there first",
                                vm_.name));
    }
    if (has_hypervisor()) {
        co_await adopt_hypervisor();
        co_await hypervisor_->destroy(destroy_patience);
        takeover_vm_.reset();
        hypervisor_.reset();
    }
    Journal::end(paths().journal(vm_.name));
}

// What an agent that is gone has begun, as far as it came.
asio::awaitable<Json> Destination::take_over(Json params) {
    rpc::only_params(params, {"migration", "vm", "disk_only"});
    const std::string migration = hex_param(params, "migration", 32);
    if (stage_ == Stage::acting && migration != migration_) {
        throw Error(ErrorKind::state, "take_over: this agent acts for another migration");
    }
    if (stage_ == Stage::blank) {
        migration_ = migration;
        disk_only_ = rpc::bool_param(params, "disk_only", false);
        vm_ = check_description(site_, params.value("vm", Json()), disk_only_);
        co_await lock(displace_patience);
        make_disks();
        find_old_images();
        for (const auto& disk : disks_) {
            disk->attach(migration_);
        }
        journal_ = journal_of(paths().journal(vm_.name), migration_);
        stage_ = Stage::acting;
        if (is_known_here()) {
            co_await adopt_hypervisor();
        }
        make_takeover();
    }
    const std::vector<DiskStanding> standings = co_await takeover_->standing();
    Json answer{{"disks", Json::array()},
                {"hypervisor", hypervisor_ ? hypervisor_->state() : "none"}};
    for (size_t i = 0; i < standings.size(); ++i) {
        answer["disks"].push_back(standing_json(disks_[i]->name(), standings[i]));
    }
    co_return answer;
}

void Destination::make_takeover() {
    Takeover::Parts parts;
    for (const auto& disk : disks_) {
        parts.disks.push_back(disk.get());
    }
    parts.vm = takeover_vm_.get();
    parts.steps = journal_.get();
    takeover_ = std::make_unique<Takeover>(std::move(parts), migration_);
}

void Destination::make_hypervisor() {
    IncomingSpec spec;
    CommandValues values;
    values.vm = vm_.name;
    values.qmp = paths().qmp_socket(vm_.name);
    values.nics = vm_.nics;
    values.values = vm_.values;
    for (const auto& disk : disks_) {
        values.disks.push_back({disk->name(), paths().disk_socket(vm_.name, disk->name())});
        spec.disks.push_back(disk->name());
    }
    spec.vm = vm_.name;
    spec.hypervisor = vm_.hypervisor;
    const HypervisorTemplate& how = site_.hypervisors.at(vm_.hypervisor);
    spec.command = expand_command(how, values);
    spec.disk_script = how.disk_script;
    spec.nic_script = how.nic_script;
    spec.nics = vm_.nics;
    spec.values = vm_.values;
    spec.monitor = values.qmp;
    spec.log = paths().hypervisor_log(vm_.name);
    spec.key_dir = paths().vm_run(vm_.name) + "/keys";
    hypervisor_ = make_incoming(spec);
    takeover_vm_ = std::make_unique<Vm>(*hypervisor_);
}

asio::awaitable<void> Destination::adopt_hypervisor() {
    if (!has_hypervisor()) {
        co_return;
    }
    make_hypervisor();
    try {
        co_await hypervisor_->adopt(adopt_patience);
    } catch (const Error& error) {
        // One that does not answer can still be ended.
        lost_("hypervisor-exited", error.what());
    }
}

asio::awaitable<Json> Destination::incoming(Json params) {
    rpc::only_params(params, {"ways"});
    require_not_promoted("incoming");
    MemoryLink link;
    link.ways = params.contains("ways") ? MemoryWays::of(params.at("ways")) : MemoryWays{};
    if (hypervisor_ || !memory_port_) {
        throw Error(ErrorKind::state, "incoming: there is no memory to wait for");
    }
    co_await journal_->step(JournalStep::memory);
    make_hypervisor();
    make_takeover();

    link.host = site_.listen;
    link.port = memory_port_number_;
    link.psk_user = memory_user;
    link.psk_key = psk_key_;
    HypervisorLost lost = [this](const std::string& what) { lost_("hypervisor-exited", what); };
    for (const auto& disk : disks_) {
        disk->is_used();
    }
    memory_port_.reset(); // it listens on the port itself, from now
    co_await hypervisor_->start_incoming(std::move(link), std::move(lost), site_.timeouts.start);
    co_return Json::object();
}

// After `run`: with post-copy, where the link has broken.
asio::awaitable<Json> Destination::memory_again(Json params) {
    rpc::only_params(params, {"psk_key"});
    require_acting("memory_again");
    if (!has_hypervisor() || !hypervisor_ || !takeover_->promoted()) {
        throw Error(ErrorKind::state, "memory_again: no VM was started here");
    }
    MemoryLink link;
    link.psk_key = hex_param(params, "psk_key", 64);
    link.psk_user = memory_user;
    link.host = site_.listen;
    link.port = listen_tcp(site_).port; // free; the hypervisor listens on it itself
    Json answer{{"port", link.port}, {"psk_user", link.psk_user}};
    const MemoryWait wait = co_await hypervisor_->accept_again(std::move(link));
    if (wait != MemoryWait::waits) {
        answer = Json::object();
        answer[wait == MemoryWait::whole ? "whole" : "gone"] = true;
    }
    co_return answer;
}

// After `incoming`: the VM's ports may be the hypervisor's own.
asio::awaitable<Json> Destination::open_tunnels(Json params) {
    rpc::only_params(params, {"psk_key"});
    require_not_promoted("tunnel");
    const std::string psk_key = hex_param(params, "psk_key", 64);
    if (!vm_.tunnel || !hypervisor_) {
        throw Error(ErrorKind::state,
                    vm_.tunnel ? "tunnel: no hypervisor was started"
                               : "tunnel: the VM was to come without one");
    }
    co_await settle_tunnels(vm_.name, false); // what an earlier attempt has left
    Json answer{{"nics", Json::array()}};
    std::function<void()> work = [this, psk_key, &answer] {
        if (has_tunnel(tunnel_ends(vm_.name), true)) {
            throw Error(ErrorKind::state,
                        fmt::format("a tunnel of {} is at home here, from when it left: "
                                    "`drover-tunnel close {}` ends it",
                                    vm_.name,
                                    Paths::tunnel_name(vm_.name, 0)));
        }
        for (size_t i = 0; i < vm_.nics.size(); ++i) {
            if (vm_.nics[i].addresses.empty()) {
                continue;
            }
            const Listener socket = listen_udp(site_);
            const TunnelKey key{tunnel_user, psk_key};
            start_away_end(
                site_, vm_.name, i, vm_.nics[i], key, tunnel_port(site_, vm_, i), socket.fd.get());
            answer["nics"].push_back(
                {{"name", vm_.nics[i].mac}, {"port", socket.port}, {"psk_user", tunnel_user}});
        }
    };
    co_await on_a_thread(std::move(work));
    co_return answer;
}

// The VM runs here. It does so too where this fails: `finish` tries it again.
asio::awaitable<void> Destination::take_frames_in() const {
    announce();
    try {
        co_await take_tunnels_in(vm_.name);
    } catch (const Error& error) {
        fmt::print(stderr, "drover agent: warning: {}\n", error.what());
    }
}

void Destination::announce() const {
    if (!vm_.stretched) {
        return;
    }
    try {
        start_announcers(vm_.name, vm_.nics);
    } catch (const Error& error) {
        fmt::print(stderr, "drover agent: warning: {}\n", error.what());
    }
}

asio::awaitable<void> Destination::settle(bool here) const {
    if (!has_hypervisor()) {
        co_return; // the VM stays where it is
    }
    try {
        co_await settle_tunnels(vm_.name, here);
    } catch (const Error& error) {
        fmt::print(stderr, "drover agent: warning: {}\n", error.what());
    }
}

asio::awaitable<Json> Destination::loaded() {
    require_not_promoted("loaded");
    if (!hypervisor_) {
        throw Error(ErrorKind::state, "loaded: no hypervisor was started");
    }
    co_await hypervisor_->wait_loaded(no_deadline);
    co_return Json::object();
}

asio::awaitable<Json> Destination::promote(Json params) {
    rpc::only_params(params, {"token"});
    require_acting("promote");
    if (has_hypervisor() && !hypervisor_) {
        throw Error(ErrorKind::state, "promote: no hypervisor was started");
    }
    const std::string token = rpc::string_param(params, "token");
    co_await takeover_->promote(token);
    if (!has_hypervisor()) {
        try_to_keep_vm_file(); // else after run(): the VM is paused meanwhile
    }
    co_return Json::object();
}

asio::awaitable<Json> Destination::run(Json params) {
    rpc::only_params(params, {"paused"});
    require_acting("run");
    const bool paused = rpc::bool_param(params, "paused", false);
    co_await takeover_->run(paused);
    runs_ = true;
    if (has_hypervisor()) {
        co_await take_frames_in();
    }
    try_to_keep_vm_file(); // should this host or its agent die before `finish`
    co_return Json::object();
}

asio::awaitable<Json> Destination::status() {
    Json answer{{"disks", Json::array()},
                {"hypervisor", hypervisor_ ? hypervisor_->state() : "none"}};
    for (const auto& disk : disks_) {
        Json status = co_await disk->status();
        answer["disks"].push_back(std::move(status));
    }
    co_return answer;
}

Json Destination::forward_key() {
    require_not_promoted("forward_key");
    if (!disk_only_) {
        throw Error(ErrorKind::state, "forward_key: the VM comes here, nobody forwards");
    }
    Json disks = Json::array();
    for (const auto& disk : disks_) {
        disk->add_forward_key(random_hex(32));
        disks.push_back(disk->forward_description());
    }
    return {{"disks", std::move(disks)}};
}

asio::awaitable<Json> Destination::refuse() {
    Json answer{{"disks", Json::array()}};
    if (stage_ == Stage::blank) {
        co_return answer;
    }
    require_acting("refuse");
    const std::vector<std::string> tokens = co_await takeover_->refuse();
    for (size_t i = 0; i < tokens.size(); ++i) {
        answer["disks"].push_back({{"name", disks_[i]->name()}, {"refusal_token", tokens[i]}});
    }
    co_await remove_all();
    co_return answer;
}

asio::awaitable<Json> Destination::supersede(Json params) {
    rpc::only_params(params, {"generation"});
    require_acting("supersede");
    co_await supersede_at(rpc::uint_param(params, "generation"));
    co_return Json::object();
}

bool Destination::is_held() const {
    return std::any_of(
        disks_.begin(), disks_.end(), [](const auto& disk) { return !disk->promoted_here(); });
}

bool Destination::was_forced() const {
    const auto first = peek_record(paths().disk_state(vm_.name, disks_.front()->name()));
    return first && may_write(*first) && first->stage == drover::Stage::over &&
           first->token.empty();
}

bool Destination::is_whole() const {
    return std::all_of(
        disks_.begin(), disks_.end(), [](const auto& disk) { return disk->is_consistent(); });
}

// One quiesce of the VM has one token for all its disks.
bool Destination::is_of_one_moment() const {
    std::string token_hash;
    for (const auto& disk : disks_) {
        const auto record = peek_record(paths().disk_state(vm_.name, disk->name()));
        if (!record || record->stage != drover::Stage::handed_over ||
            (disk != disks_.front() && record->token_hash != token_hash)) {
            return disks_.size() == 1;
        }
        token_hash = record->token_hash;
    }
    return true;
}

asio::awaitable<void> Destination::promote_rest() {
    const auto first = peek_record(paths().disk_state(vm_.name, disks_.front()->name()));
    std::string token = first ? first->token : std::string();
    co_await takeover_->promote(std::move(token));
    if (hypervisor_ && hypervisor_->ready()) {
        co_await takeover_->run(false);
        runs_ = true;
        co_await take_frames_in();
    }
    try_to_keep_vm_file();
}

asio::awaitable<uint64_t> Destination::promote_by_force() {
    const bool may_run = takeover_->promoted() && !was_forced();
    co_await journal_->step(JournalStep::force);
    if (hypervisor_ && !may_run) {
        // Its memory may be of another moment than the disks.
        co_await hypervisor_->destroy(destroy_patience);
    }
    for (const auto& disk : disks_) {
        co_await disk->promote_by_force();
    }
    if (hypervisor_ && may_run && hypervisor_->ready()) {
        co_await takeover_->run(false);
        runs_ = true;
        announce();
    }
    co_await settle(runs_);
    try_to_keep_vm_file();
    co_await end_journal();
    stage_ = Stage::over;
    co_return disks_.front()->generation();
}

// Of a promoted VM that its source was forced to take back.
asio::awaitable<void> Destination::supersede_at(uint64_t generation) {
    for (const auto& disk : disks_) {
        co_await disk->supersede(generation);
    }
    if (hypervisor_) {
        co_await hypervisor_->destroy(destroy_patience);
    }
    co_await settle(false);
    co_await end_journal();
    stage_ = Stage::over;
}

asio::awaitable<void> Destination::remove_all() {
    stage_ = Stage::over;
    memory_port_.reset();
    std::vector<asio::awaitable<void>> removing;
    for (const auto& disk : disks_) {
        removing.push_back(disk->remove());
    }
    removing.push_back(settle(false));
    co_await all_to_the_end(std::move(removing));
    co_await end_journal();
}

// Should the source be lost, this is all that there is of the VM; and if it is not, it asks.
asio::awaitable<void> Destination::put_down() {
    stage_ = Stage::over;
    memory_port_.reset();
    if (hypervisor_) {
        co_await hypervisor_->destroy(destroy_patience);
    }
    co_await settle(false);
    for (const auto& disk : disks_) {
        co_await disk->put_down();
    }
}

asio::awaitable<void> Destination::end_journal() {
    co_await journal_->step(JournalStep::over);
}

asio::awaitable<Json> Destination::finish() {
    require_acting("finish");
    co_await takeover_->finish();
    if (disks_.front()->is_of_this_migration()) { // else it has moved on since
        keep_vm_file();
        co_await settle(true);
    }
    co_await end_journal();
    stage_ = Stage::over;
    co_return Json::object();
}

asio::awaitable<void> Destination::abandon() {
    if (stage_ != Stage::acting) {
        co_return;
    }
    if (!takeover_->promoted()) {
        if (is_whole()) {
            co_await put_down();
        } else {
            co_await refuse();
        }
        co_return;
    }
    // The source does not know yet; whoever recovers it tells it, and finishes.
    for (const auto& disk : disks_) {
        disk->remove_key();
    }
    try_to_keep_vm_file();
    stage_ = Stage::over;
}

// So that `drover serve`, `status` and the next migration know the VM here by its name.
void Destination::keep_vm_file() const {
    VmFile file;
    file.name = vm_.name;
    file.hypervisor = disk_only_ ? "none" : vm_.hypervisor;
    for (const auto& disk : disks_) {
        file.disks.push_back({disk->name(), disk->store()});
    }
    if (!disk_only_) {
        file.nics = vm_.nics;
    }
    if (file.hypervisor == "qemu") {
        file.values = vm_.values;
    }
    if (hypervisor_ && file.hypervisor == "qemu") {
        file.local["qmp"] = paths().qmp_socket(vm_.name);
    }
    keep_arrived_vm_file(paths().arrived_vm_file(vm_.name), file);
}

// The VM is here, whatever its file says; finish() tries again.
void Destination::try_to_keep_vm_file() const {
    try {
        keep_vm_file();
    } catch (const Error& error) {
        fmt::print(stderr, "drover agent: warning: {}\n", error.what());
    }
}

} // namespace drover
