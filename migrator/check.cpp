// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/check.h"

#include "common/secrets.h"
#include "migrator/check_options.h"
#include "migrator/destination_recovery.h"
#include "migrator/dns_change.h"
#include "migrator/drivers/none.h"
#include "migrator/forward_policy.h"
#include "migrator/paths.h"
#include "migrator/probe.h"
#include "migrator/run_lock.h"
#include "migrator/segment.h"
#include "migrator/serve.h"
#include "migrator/source_disk.h"
#include "migrator/source_recovery.h"
#include "migrator/tunnels.h"
#include "nbd-proxy/record_store.h"

#include <algorithm>
#include <filesystem>

#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>

#include <signal.h>

namespace drover {
namespace {

using rpc::Json;

// It reads records, lists the packet filter's rules, and asks tunnels that may not answer.
constexpr milliseconds survey_patience{60000};
// Of a disk that was never served.
constexpr const char* no_uuid = "00000000-0000-0000-0000-000000000000";
constexpr uint64_t usual_block_size = 64 * KiB;

// What earlier moves have left of an image.
std::vector<std::string> old_images(const std::string& file) {
    std::vector<std::string> found;
    const std::filesystem::path image = file;
    const std::string prefix = image.filename().string() + ".fenced-";
    std::error_code ignored; // a folder that can't be read has none
    for (const auto& entry : std::filesystem::directory_iterator(image.parent_path(), ignored)) {
        if (entry.path().filename().string().starts_with(prefix)) {
            found.push_back(entry.path());
        }
    }
    return found;
}

class Check {
public:
    Check(asio::any_io_executor executor,
          const SiteConfig& site,
          const VmFile& vm,
          const MigrateOptions& options)
        : executor_(executor), site_(site), vm_(vm), options_(options), changed_(executor),
          agent_(executor, site, options.peer, {}) {}

    asio::awaitable<Level> run() {
        say({Level::ok,
             "configuration",
             fmt::format("{} is right: hypervisor {}, {} disks, {} NICs",
                         vm_.path,
                         vm_.hypervisor,
                         vm_.disks.size(),
                         vm_.nics.size())});
        const bool quiet = look_at_state();
        for (const DiskSpec& disk : vm_.disks) {
            co_await look_at_disk(disk);
        }
        if (quiet && with_memory()) {
            co_await look_at_hypervisor();
        }
        std::function<void()> network = [this] { look_at_network(); };
        co_await on_a_thread(std::move(network));
        std::function<void()> names = [this] { look_at_names(); };
        co_await on_a_thread(std::move(names));
        if (!vm_.hooks.pre_check.empty()) {
            say({Level::note, "hook pre-check", "not run, as it may change something"});
        }
        co_await look_there();
        if (options_.json) {
            print(Json{{"vm", vm_.name},
                       {"host", options_.peer.host},
                       {"result", level_name(worst_)},
                       {"findings", findings_}}
                      .dump(-1, ' ', false, Json::error_handler_t::replace));
        }
        co_return worst_;
    }

private:
    static void print(const std::string& line) {
        fmt::print("{}\n", line);
        std::fflush(stdout);
    }

    void add(const std::string& where, const std::string& name, const Finding& finding) {
        worst_ = std::max(worst_, finding.level);
        if (options_.json) {
            Json entry = finding_json(finding);
            entry["where"] = where;
            findings_.push_back(std::move(entry));
        } else {
            print(finding_line(name, finding));
        }
    }
    void say(const Finding& finding) { add("here", "here", finding); }
    void say_there(const Finding& finding) { add("there", options_.peer.host, finding); }

    // What a migration needs, and what may be missing as long as none is asked for.
    Level needed() const {
        return options_.peer.host.empty() && options_.peer.to_uri.empty() ? Level::warning
                                                                          : Level::problem;
    }
    bool with_memory() const { return !options_.disk_only && vm_.hypervisor != "none"; }

    // --- here

    // false: somebody is at work, whose business the hypervisor is.
    bool look_at_state() {
        const std::string& name = vm_.name;
        try {
            const RunLock lock(paths().migrate_lock(name));
            if (lock.is_held() && lock.holder()->what != "migrate") {
                say({Level::problem,
                     "state",
                     "a migration was interrupted, and a recovery of it is under way",
                     fmt::format("`drover recover {}`, which says what is in its way", name)});
                return false;
            }
            if (lock.is_held() || RunLock(paths().agent_lock(name)).is_held()) {
                say({Level::problem,
                     "state",
                     "a migration of it is under way",
                     fmt::format("wait for its end, which `drover status {0}` shows, or `drover "
                                 "abort {0}`",
                                 name)});
                return false;
            }
            const std::string& first = vm_.disks.front().name;
            if (SourceRecovery::is_needed(name, first) ||
                DestinationRecovery::is_needed(name, first)) {
                say({Level::problem,
                     "state",
                     "a migration has not come to its end",
                     fmt::format("`drover recover {}`", name)});
            } else {
                say({Level::ok, "state", "no migration is under way or unfinished"});
            }
        } catch (const Error& error) {
            say({Level::problem, "state", error.what()});
        }
        return true;
    }

    asio::awaitable<void> look_at_disk(const DiskSpec& spec) {
        const std::string about = "disk " + spec.name;
        VmDescription::Disk described;
        described.name = spec.name;
        try {
            if (find_served(vm_.name, spec.name)) {
                co_await look_at_served(spec, described);
            } else {
                look_at_unserved(spec, described);
            }
            const uint64_t allocated = allocated_bytes(spec.store.file);
            used_[spec.name] = allocated == 0 ? described.size : allocated;
            described_.push_back(std::move(described));
            look_for_old_images(about, spec.store.file);
        } catch (const Error& error) {
            say({Level::problem, about, error.what()});
        }
    }

    // Only of a disk that is this host's: else such an image may be the disk itself.
    void look_for_old_images(const std::string& about, const std::string& file) {
        for (const std::string& image : old_images(file)) {
            say({Level::note,
                 about,
                 fmt::format("{} is left of an earlier move, {}",
                             image,
                             format_size(allocated_bytes(image))),
                 "remove it if nobody needs it"});
        }
    }

    asio::awaitable<void> look_at_served(const DiskSpec& spec, VmDescription::Disk& described) {
        SourceDisk disk(executor_, site_, vm_.name, spec, changed_, {});
        co_await disk.open();
        const Json& status = disk.status();
        described.uuid = status.value("uuid", "");
        described.size = status.value("size", uint64_t{0});
        described.block_size = status.value("block_size", uint64_t{0});
        const std::string about = "disk " + spec.name;
        if (disk.has_leftover()) {
            say({Level::note,
                 about,
                 "what replicates it has no coordinator; the next migration ends it"});
        }
        if (with_memory() && status.value("clients", uint64_t{0}) == 0) {
            say({needed(),
                 about,
                 "served, and nobody uses it",
                 fmt::format("start the VM with {} as the disk",
                             paths().disk_socket(vm_.name, spec.name))});
        } else {
            say({Level::ok,
                 about,
                 fmt::format("served, this host's at generation {}, {}",
                             status.value("generation", uint64_t{0}),
                             format_size(described.size))});
        }
    }

    void look_at_unserved(const DiskSpec& spec, VmDescription::Disk& described) {
        const auto record = peek_record(paths().disk_state(vm_.name, spec.name));
        if (record && !may_write(*record)) {
            throw Error(ErrorKind::refused,
                        fmt::format("it is not this host's: its role is '{}', and what writes it "
                                    "is elsewhere",
                                    to_string(record->role)));
        }
        std::error_code error;
        const uint64_t size = std::filesystem::file_size(spec.store.file, error);
        described.uuid = record && !record->uuid.empty() ? record->uuid : no_uuid;
        described.size = error ? device_size(spec.store.file).value_or(0) : size;
        described.block_size = usual_block_size;
        say({needed(),
             "disk " + spec.name,
             "not served",
             fmt::format("`drover serve {0}`, and then start the VM with {1} as the disk",
                         vm_.name,
                         paths().disk_socket(vm_.name, spec.name))});
    }

    asio::awaitable<void> look_at_hypervisor() {
        const auto hypervisor = make_outgoing(vm_);
        inspection_ = co_await hypervisor->inspect();
        bool known = true;
        for (Finding finding : inspection_.findings) {
            known = known && finding.level != Level::problem;
            finding.level = std::min(finding.level, needed());
            say(finding);
        }
        if (known) {
            values_ = hypervisor->values();
        }
    }

    void look_at_network() {
        if (!with_memory()) {
            return;
        }
        try {
            leads_home_ = has_tunnel(tunnel_ends(vm_.name), false);
            if (!leads_home_ && vm_.network.mode == NetworkSpec::Mode::automatic) {
                say({Level::note,
                     "network",
                     "mode = \"auto\": whether the sites are one segment, or a tunnel is needed, "
                     "is found out as the migration begins",
                     fmt::format("`drover migrate --dry-run {} HOST` tells", vm_.name)});
            } else if (!leads_home_) {
                network_ = vm_.network.mode;
            }
            if (!wants_tunnel()) {
                return;
            }
            const Findings host = tunnel_host_findings();
            for (const Finding& finding : host) {
                say(finding);
            }
            check_home_ends(vm_);
            if (host.empty()) {
                say({Level::ok, "tunnel", "a home end can be put up here"});
            }
            look_at_home();
        } catch (const Error& error) {
            say({Level::problem, "tunnel", error.what()});
        }
    }

    void look_at_names() {
        if (!moves_dns(vm_, options_.disk_only, options_.detach, !options_.peer.to_uri.empty())) {
            return;
        }
        try {
            const DnsState state = survey_dns(vm_, "", options_.peer.host);
            say({Level::ok,
                 "dns",
                 fmt::format("{} can be updated with the key of {}",
                             fmt::join(names_of(state), " "),
                             vm_.network.dns->key_file)});
            look_at_ttl(state);
        } catch (const Error& error) {
            say({Level::problem, "dns", error.what()});
        }
    }

    void look_at_ttl(const DnsState& state) {
        uint32_t longest = 0;
        for (const DnsState::Entry& entry : state.entries) {
            longest = std::max(longest, entry.before.ttl);
        }
        if (longest > state.ttl) {
            say({Level::warning,
                 "dns",
                 fmt::format("records have a TTL of {} s: a cache may have the old addresses for "
                             "as long after the migration has begun and lowered it",
                             longest),
                 fmt::format("`drover dns {} --lower` that long before", vm_.name)});
        }
    }

    bool wants_tunnel() const { return network_ == NetworkSpec::Mode::tunnel; }

    void look_at_home() {
        std::vector<std::string> bridges, addresses;
        for (const NicSpec& nic : addressed(vm_.nics)) {
            bridges.push_back(home_bridge(nic));
            addresses.insert(addresses.end(), nic.addresses.begin(), nic.addresses.end());
        }
        for (const Finding& finding : forward_findings(bridges, "the tunnel's frames")) {
            say(finding);
        }
        say({Level::note,
             "addresses",
             fmt::format("as long as the tunnel is up, {} {} the VM's",
                         fmt::join(addresses, ", "),
                         addresses.size() == 1 ? "stays" : "stay"),
             "see that neither DHCP nor IPAM gives them to anybody else"});
    }

    // --- there

    asio::awaitable<void> look_there() {
        if (!options_.peer.to_uri.empty()) {
            say({Level::note, "destination", options_.peer.to_uri + " was not looked at"});
            co_return;
        }
        if (options_.peer.host.empty()) {
            say({Level::note,
                 "destination",
                 "no HOST was given: the other side was not looked at",
                 fmt::format("`drover check {} HOST`", vm_.name)});
            co_return;
        }
        bool started = false;
        try {
            co_await agent_.start();
            started = true;
            say_there(agent_finding());
            co_await ask();
        } catch (const Error& error) {
            const bool answered = started || error.kind() == ErrorKind::refused;
            say_there({Level::problem, "agent", error.what(), answered ? "" : by_hand()});
        }
        co_await agent_.end();
    }

    std::string by_hand() const {
        return fmt::format("`{}` must start it by hand, and ask for nothing",
                           fmt::join(agent_command(options_.peer.rsh, options_.peer.host), " "));
    }

    Finding agent_finding() const {
        const std::string& version = agent_.program_version();
        return version == DROVER_VERSION
                   ? Finding{Level::ok, "agent", fmt::format("drover {} answers", version)}
                   : Finding{Level::note,
                             "agent",
                             fmt::format("drover {} answers, this one is {}; they speak the same "
                                         "protocol",
                                         version,
                                         DROVER_VERSION)};
    }

    asio::awaitable<void> ask() {
        if (described_.size() != vm_.disks.size()) {
            say_there(
                {Level::note, "VM", "not asked about it, as not all of its disks are known here"});
            co_return;
        }
        Json params{{"vm", describe(vm_, described_, values_, network_)},
                    {"disk_only", options_.disk_only}};
        if (!options_.bases.empty()) {
            params["bases"] = options_.bases;
        }
        const Json old_params = params;
        params["used"] = used_;
        bool is_old = false;
        try {
            const Json answer = co_await agent_.call("survey", std::move(params), survey_patience);
            tell(read_survey(answer));
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::usage) { // usage: a method or parameters unknown to it
                throw;
            }
            is_old = true;
        }
        if (is_old) {
            co_await ask_old(old_params);
        } else {
            co_await try_ports();
        }
    }

    void tell(const Survey& survey) {
        for (const Finding& finding : survey.findings) {
            say_there(finding);
        }
        if (leads_home_ && !survey.at_home) {
            say_there({Level::problem,
                       "tunnel",
                       fmt::format("that of {} leads to the site that it came from, which is not "
                                   "this one, and can't follow it on from here",
                                   vm_.name),
                       fmt::format("`drover-tunnel close {}` here, which ends the connections to "
                                   "the old addresses",
                                   Paths::tunnel_name(vm_.name, 0))});
        }
        for (const Finding& finding : cpu_findings(inspection_, this_cpu(), survey)) {
            say_there(finding);
        }
    }

    asio::awaitable<void> ask_old(Json params) {
        say_there({Level::warning,
                   "agent",
                   fmt::format("drover {} tells no more than the first of what would be refused; "
                               "ports, space and firewall were not looked at",
                               agent_.program_version()),
                   "update drover there"});
        try {
            co_await agent_.call("check", std::move(params), survey_patience);
            say_there({Level::ok, "VM", "would not be refused"});
        } catch (const Error& error) {
            say_there({Level::problem, "VM", error.what()});
        }
    }

    // --- the ports

    struct Attempt {
        uint16_t port = 0;
        bool stream = true;
        std::string error;
    };

    asio::awaitable<void> try_ports() {
        const size_t streams = vm_.disks.size() + (with_memory() ? 1 : 0);
        const size_t datagrams = wants_tunnel() ? addressed(vm_.nics).size() : 0;
        const std::string word = random_hex(probe_word_digits / 2);
        Json params{{"word", word}, {"tcp", streams}, {"udp", datagrams}};
        ProbePorts ports;
        try {
            const Json answer = co_await agent_.call("probe", std::move(params), survey_patience);
            ports = read_probe(answer, streams, datagrams);
        } catch (const Error& error) {
            if (error.kind() == ErrorKind::peer || error.kind() == ErrorKind::timeout) {
                throw;
            }
            say_there({Level::problem, "ports", error.what()});
            co_return;
        }
        std::vector<Attempt> attempts;
        for (const uint16_t port : ports.tcp) {
            attempts.push_back(Attempt{port, true});
        }
        for (const uint16_t port : ports.udp) {
            attempts.push_back(Attempt{port, false});
        }
        std::vector<asio::awaitable<void>> trying;
        for (Attempt& attempt : attempts) {
            std::function<void()> work = [this, &attempt, word] {
                const auto probe = attempt.stream ? probe_tcp : probe_udp;
                attempt.error = probe(data_address(options_.peer),
                                      attempt.port,
                                      word,
                                      milliseconds(site_.timeouts.connect));
            };
            trying.push_back(on_a_thread(std::move(work)));
        }
        co_await all(std::move(trying));
        tell_ports(attempts, true);
        tell_ports(attempts, false);
    }

    void tell_ports(const std::vector<Attempt>& attempts, bool streams) {
        const char* const kind = streams ? "TCP" : "UDP";
        std::vector<uint16_t> reached;
        std::map<std::string, std::vector<uint16_t>> failed; // by what was said
        for (const Attempt& attempt : attempts) {
            if (attempt.stream == streams) {
                (attempt.error.empty() ? reached : failed[attempt.error]).push_back(attempt.port);
            }
        }
        for (const auto& [error, ports] : failed) {
            say_there(
                {Level::problem,
                 "ports",
                 fmt::format("{} port {} of {}, where the agent listens: {}",
                             kind,
                             fmt::join(ports, ", "),
                             data_address(options_.peer),
                             error),
                 fmt::format("let {} from here to the 'ports' of its drover.toml through each "
                             "firewall on the way, or give the address of 'listen' by "
                             "--data-address",
                             kind)});
        }
        if (!reached.empty()) {
            say_there({Level::ok,
                       "ports",
                       fmt::format("{} port {} of {} reached from here",
                                   kind,
                                   fmt::join(reached, ", "),
                                   data_address(options_.peer))});
        }
    }

    asio::any_io_executor executor_;
    const SiteConfig& site_;
    const VmFile& vm_;
    const MigrateOptions& options_;
    Notifier changed_;
    PeerAgent agent_;
    Level worst_ = Level::ok;
    Json findings_ = Json::array();
    std::vector<VmDescription::Disk> described_;
    std::map<std::string, uint64_t> used_; // bytes of each disk
    std::map<std::string, std::string> values_;
    Inspection inspection_;
    bool leads_home_ = false;
    NetworkSpec::Mode network_ = NetworkSpec::Mode::none; // as far as that is known
};

} // namespace

Findings cpu_findings(const Inspection& vm, const Cpu& here, const Survey& there) {
    Findings found;
    if (vm.kvm && !there.kvm) {
        found.push_back(
            {Level::warning,
             "processor",
             "the VM runs with KVM, and there is no /dev/kvm that the agent may open",
             "`modprobe kvm_intel` or `kvm_amd`, with virtualisation switched on in its "
             "firmware"});
    }
    if (!vm.kvm || !vm.host_cpu) {
        return found;
    }
    std::vector<std::string> missing;
    std::set_difference(here.flags.begin(),
                        here.flags.end(),
                        there.cpu.flags.begin(),
                        there.cpu.flags.end(),
                        std::back_inserter(missing));
    if (!missing.empty() || (here.flags.empty() && here.model != there.cpu.model)) {
        found.push_back(
            {Level::warning,
             "processor",
             fmt::format(
                 "the VM has all that the processor here has ({}); the one there ({}) lacks "
                 "{}",
                 here.model,
                 there.cpu.model,
                 missing.empty() ? "it is not known what"
                                 : fmt::format("{}", fmt::join(missing, " "))),
             "start it with a model that both have, such as -cpu x86-64-v2, not `host` or `max`"});
    }
    return found;
}

int run_check(const SiteConfig& site, const VmFile& vm, const MigrateOptions& options) {
    ::signal(SIGPIPE, SIG_IGN);
    check_options(site, vm, options);
    asio::io_context context(1);
    Check check(context.get_executor(), site, vm, options);
    Level worst = Level::ok;
    std::exception_ptr broken;
    auto done = [&](std::exception_ptr failure, Level level) {
        broken = failure;
        worst = level;
        context.stop();
    };
    asio::co_spawn(context, check.run(), std::move(done));
    context.run();
    if (broken) {
        std::rethrow_exception(broken);
    }
    return worst == Level::problem ? exit_failed : exit_done;
}

} // namespace drover
