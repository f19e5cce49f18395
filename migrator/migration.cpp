// SPDX-License-Identifier: GPL-2.0-or-later
// The way forward. What runs at the same time is in one all(); whoever fails first ends the others.
#include "migrator/migration.h"

#include "common/secrets.h"
#include "migrator/check_options.h"
#include "migrator/dns_change.h"
#include "migrator/driver.h"
#include "migrator/memory_convergence.h"
#include "migrator/paths.h"
#include "migrator/tunnels.h"
#include "migrator/vm_file.h"

#include <algorithm>
#include <filesystem>

#include <asio/bind_cancellation_slot.hpp>
#include <asio/co_spawn.hpp>
#include <asio/this_coro.hpp>

namespace drover {
namespace {

using rpc::Json;

// A local call that writes no more than a record; or one across the link.
constexpr milliseconds call_patience{30000};
// The agent starts every disk before it answers.
constexpr milliseconds per_disk_patience{60000};
// And where the file system there has no reflinks, it copies the bases.
constexpr milliseconds base_patience = std::chrono::hours(24);
constexpr milliseconds memory_interval{500};
constexpr milliseconds replicate_retry{2000};
// Reads every block at both sides.
constexpr std::chrono::hours verify_patience{24 * 7};

Json replicate_target(const std::string& address, const DataPort& there, const std::string& key) {
    return {
        {"host", address}, {"port", there.port}, {"psk_user", there.psk_user}, {"psk_key", key}};
}

constexpr uint64_t progress_bytes = 1 << 20;

// "{disk}" in it stands for the disk's name.
std::string uri_of(std::string uri, const std::string& disk) {
    constexpr std::string_view placeholder = "{disk}";
    if (const size_t at = uri.find(placeholder); at != std::string::npos) {
        uri.replace(at, placeholder.size(), disk);
    }
    return uri;
}

Error not_converged(const std::string& since, const MemoryProgress& memory) {
    return Error(
        ErrorKind::timeout,
        fmt::format("the memory does not converge: {}: {} to go after {} passes, the link takes "
                    "{}/s, the guest changes {}/s; a longer --downtime may help",
                    since,
                    format_size(memory.remaining_bytes),
                    memory.passes,
                    format_size(memory.send_rate),
                    format_size(memory.dirty_rate)));
}

} // namespace

asio::awaitable<void> Migration::forward() {
    co_await check();
    if (options_.dry_run) {
        co_return;
    }
    step(PhaseEvent::step);
    co_await prepare();
    step(PhaseEvent::step);
    co_await copy();
    step(PhaseEvent::step);
    co_await memory();
    step(PhaseEvent::step);
    co_await switch_over();
    step(PhaseEvent::step);
    turn_names();
    co_await see_rest_across();
    if (options_.verify) {
        co_await verify();
    }
    co_await finish();
}

// --- check: nothing is touched

asio::awaitable<void> Migration::check() {
    check_options(site_, vm_, options_);
    hypervisor_->require(options_.memory);
    std::vector<asio::awaitable<void>> opening;
    for (const auto& disk : disks_) {
        opening.push_back(open_disk(*disk));
    }
    co_await all(std::move(opening));
    if (const auto last = read_journal(paths().journal(vm_.name))) {
        burn_above(last->facts.value("generation", uint64_t{0}));
    }

    HypervisorLost lost = [this](const std::string& what) {
        vm_lost_ = true;
        request_stop(Error(ErrorKind::state, what));
    };
    co_await hypervisor_->describe(std::move(lost));
    for (const std::string& warning : hypervisor_->warnings()) {
        say("warning", warning);
    }
    co_await look_for_tunnels();
    co_await run_hook(
        "pre-check", vm_.hooks.pre_check, hook_environment(), patience(site_.timeouts.hook));
    if (!to_plain_server()) {
        co_await check_peer();
    }
    if (moves_dns(vm_, options_.disk_only, options_.detach, to_plain_server())) {
        co_await survey_names();
    }
}

asio::awaitable<void> Migration::survey_names() {
    std::function<void()> work = [this] {
        names_ = survey_dns(vm_, report_.migration, options_.peer.host);
    };
    co_await on_a_thread(std::move(work));
}

asio::awaitable<void> Migration::open_disk(SourceDisk& disk) {
    co_await disk.open();
    if (hypervisor_->has_memory() && disk.status().value("clients", uint64_t{0}) == 0) {
        throw Error(
            ErrorKind::state,
            fmt::format("nobody uses disk {} of {}: its hypervisor must have {} as the disk",
                        disk.name(),
                        vm_.name,
                        paths().disk_socket(vm_.name, disk.name())));
    }
    burn_above(disk.status().value("generation", uint64_t{0}));
}

// Each attempt takes a generation that none had before, also one that came no further than its
// journal.
void Migration::burn_above(uint64_t generation) {
    report_.generation = std::max(report_.generation, generation + 1);
}

asio::awaitable<void> Migration::check_peer() {
    co_await agent_.start();
    if (vm_.network.mode == NetworkSpec::Mode::automatic && hypervisor_->has_memory() &&
        !leads_home_) {
        co_await choose_network();
    }
    Json params{{"vm", vm_description()}, {"disk_only", options_.disk_only}};
    add_bases(params);
    Json answer;
    try {
        answer = co_await agent_.call("check", std::move(params), call_patience);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::refused || network_why_.empty()) {
            throw;
        }
        throw Error(ErrorKind::refused,
                    fmt::format("{} (network.mode = \"auto\" has chosen \"{}\": {}; \"tunnel\", "
                                "\"stretched\" or \"none\" in {} decides it otherwise)",
                                error.what(),
                                stretched_ ? "stretched" : "tunnel",
                                network_why_,
                                vm_.path));
    }
    burn_above(read_check(answer, report_.generation));
    if (leads_home_ && !read_at_home(answer)) {
        throw Error(ErrorKind::refused,
                    fmt::format("the tunnel of {0} leads to the site that it came from, which is "
                                "not {1}, and can't follow it on from here: `drover-tunnel close "
                                "{2}` ends it, and the connections to the old addresses with it",
                                vm_.name,
                                options_.peer.host,
                                Paths::tunnel_name(vm_.name, 0)));
    }
}

asio::awaitable<void> Migration::look_for_tunnels() {
    if (!hypervisor_->has_memory()) {
        co_return;
    }
    std::function<void()> work = [this] {
        leads_home_ = has_tunnel(tunnel_ends(vm_.name), false);
        wants_tunnel_ = vm_.network.mode == NetworkSpec::Mode::tunnel && !leads_home_;
        stretched_ = vm_.network.mode == NetworkSpec::Mode::stretched && !leads_home_;
        if (wants_tunnel_) {
            check_home_ends(vm_);
        }
    };
    co_await on_a_thread(std::move(work));
}

// The destination asks for the VM, while it runs here, and we hear whether that comes here.
asio::awaitable<SegmentEvidence> Migration::compare_segments(std::vector<NicSpec> nics) {
    const auto nonce = tunnel::parse_nonce(random_hex(sizeof(tunnel::Nonce)));
    std::vector<std::string> macs;
    for (const NicSpec& nic : nics) {
        macs.push_back(nic.mac);
    }
    SegmentWatch watch(nics);
    Json description = vm_description();
    description["stretched"] = true;
    Json params{{"vm", std::move(description)}, {"nonce", tunnel::to_text(*nonce)}};
    const Json answer = co_await agent_.call("segment", std::move(params), call_patience);
    SegmentEvidence evidence;
    evidence.answered = read_segment(answer, macs);
    std::function<void()> work = [&] { evidence.heard = watch.heard(*nonce); };
    co_await on_a_thread(std::move(work));
    co_return evidence;
}

asio::awaitable<void> Migration::choose_network() {
    const std::vector<NicSpec> nics = addressed(vm_.nics);
    std::optional<SegmentEvidence> evidence;
    NetworkChoice choice;
    try {
        evidence = co_await compare_segments(nics);
    } catch (const Error& error) {
        const std::initializer_list<ErrorKind> lost{
            ErrorKind::peer, ErrorKind::timeout, ErrorKind::cancelled};
        if (std::find(lost.begin(), lost.end(), error.kind()) != lost.end()) {
            throw;
        }
        choice.why =
            fmt::format("whether both sites are one segment can't be told: {}", error.what());
    }
    if (evidence) {
        choice = ::drover::choose_network(nics, *evidence);
    }
    stretched_ = choice.stretched;
    wants_tunnel_ = !choice.stretched;
    network_why_ = choice.why;
    say("info",
        fmt::format("network.mode = \"auto\": {}: {}",
                    stretched_ ? "stretched" : "a tunnel",
                    network_why_));
    if (wants_tunnel_) {
        check_home_ends(vm_);
    }
}

// --- prepare: the destination's disks, and a stream to each

asio::awaitable<void> Migration::prepare() {
    make_directories(paths().vm_state(vm_.name), 0700);
    journal_ = Journal::create(paths().journal(vm_.name), "source", journal_facts());
    touched_ = true;
    if (agent_.connected()) {
        note_agent(agent_.pid());
    }
    for (const auto& disk : disks_) {
        disk->migration = report_.migration;
        if (disk->has_leftover()) { // we hold the VM's lock: nobody is at it any more
            Json none = Json::object();
            co_await disk->call("cancel", std::move(none), call_patience);
        }
        co_await disk->watch();
    }
    if (!to_plain_server()) {
        co_await prepare_agent();
    }
    if (names_) {
        co_await lower_ttls();
    }
    co_await journal_->step(JournalStep::replicate);
    report_.times.streaming = Clock::now();
    std::vector<asio::awaitable<void>> starting;
    for (size_t i = 0; i < disks_.size(); ++i) {
        SourceDisk& disk = *disks_[i];
        Json to{{"uri", uri_of(options_.peer.to_uri, disk.name())}};
        bool compare = false;
        if (!to_plain_server()) {
            const PreparedDisk& there = prepared_.disks.at(i);
            disk.refusal_hash = there.refusal_hash;
            to = replicate_target(data_address_, there.at, psk_key_);
            compare = !there.empty;
        }
        targets_.push_back(to);
        starting.push_back(replicate(disk, std::move(to), compare));
    }
    co_await all(std::move(starting));
}

// The caches have as long as the disks take to forget the longer one.
asio::awaitable<void> Migration::lower_ttls() {
    std::function<void()> work = [this] { lower_dns(vm_, *names_); };
    co_await on_a_thread(std::move(work));
}

void Migration::add_bases(Json& params) const {
    if (!options_.bases.empty()) {
        params["bases"] = options_.bases;
    }
}

asio::awaitable<void> Migration::prepare_agent() {
    psk_key_ = random_hex(32);
    Json params{{"migration", report_.migration},
                {"generation", report_.generation},
                {"vm", vm_description()},
                {"psk_key", psk_key_},
                {"disk_only", options_.disk_only}};
    add_bases(params);
    co_await journal_->step(JournalStep::prepare);
    agent_.about(report_.migration, params.at("vm"), options_.disk_only);
    agent_prepared_ = true;
    const milliseconds copying = options_.bases.empty() ? milliseconds(0) : base_patience;
    const milliseconds limit = per_disk_patience * disks_.size() + copying;
    const Json answer = co_await agent_.call("prepare", std::move(params), limit);
    prepared_ = read_prepare(answer, agent_.disks(), hypervisor_->has_memory());
}

asio::awaitable<void> Migration::replicate(SourceDisk& disk, Json to, bool compare) {
    Json params{{"migration", report_.migration},
                {"generation", report_.generation},
                {"to", std::move(to)},
                {"compress", options_.compress},
                {"downtime_ms", downtime_ms_}};
    if (options_.connections != 0) {
        params["connections"] = options_.connections;
    }
    if (compare) {
        params["compare"] = true;
    }
    params["reconnect_ms"] = milliseconds(link_patience()).count();
    if (max_bandwidth_ != 0) {
        params["max_bandwidth"] = std::max<uint64_t>(max_bandwidth_ / disks_.size(), 1);
    }
    co_await disk.call("replicate", std::move(params), patience(site_.timeouts.connect));
}

// --- copy: until all disks are ready

Error Migration::not_ready(const std::string& since) const {
    uint64_t dirty = 0, drain = 0, writes = 0;
    for (const auto& disk : disks_) {
        dirty += disk->left_bytes();
        drain += disk->number("drain_rate");
        writes += disk->number("write_rate");
    }
    return Error(ErrorKind::timeout,
                 fmt::format("the disks are not ready {}: {} to go, the link takes {}/s, the guest "
                             "writes {}/s",
                             since,
                             format_size(dirty),
                             format_size(drain),
                             format_size(writes)));
}

asio::awaitable<void> Migration::copy() {
    const auto limit = options_.converge_timeout, patience = options_.stall_timeout;
    const Deadline deadline = limit.count() == 0 ? no_deadline : Clock::now() + limit;
    Deadline stalled = no_deadline;
    uint64_t least = std::numeric_limits<uint64_t>::max(); // of what was left
    const auto ready = [](const auto& disk) { return disk->ready(); };
    agent_.wait_for_us(link_patience());
    for (const auto& disk : disks_) {
        disk->may_end(!to_plain_server()); // that may still do what the old one had sent
    }
    while (!std::all_of(disks_.begin(), disks_.end(), ready)) {
        for (size_t i = 0; i < disks_.size(); ++i) {
            if (disks_[i]->ended()) {
                co_await revive(i);
            }
        }
        tell_of_links();
        show_progress();
        uint64_t left = 0;
        bool told = true; // each disk has said how far it is
        for (const auto& disk : disks_) {
            left += disk->left_bytes();
            told = told && !disk->phase().empty() && disk->left_bytes() > 0;
        }
        // What comes and goes with the guest's writes is no progress.
        if (!told) {
            least = std::numeric_limits<uint64_t>::max();
            stalled = no_deadline;
        } else if (left < least && least - left >= std::min(progress_bytes, least / 16)) {
            least = left;
            stalled = patience.count() == 0 ? no_deadline : Clock::now() + patience;
        }
        if (co_await changed_.wait_until(std::min(deadline, stalled))) {
            continue;
        }
        throw deadline <= stalled
            ? not_ready(fmt::format("after {} s (--converge-timeout)", limit.count()))
            : not_ready(
                  fmt::format("and get no nearer for {} s (--stall-timeout)", patience.count()));
    }
    for (const auto& disk : disks_) {
        disk->may_end(false);
    }
    agent_.wait_for_us(longest_silence); // from here on others may have to decide without us
    show_progress();
    report_.times.ready = Clock::now();
}

// How long a link may be down while the disks are copied.
std::chrono::seconds Migration::link_patience() const {
    const std::chrono::seconds wanted = options_.stall_timeout;
    return wanted.count() == 0 ? longest_patience : std::max(wanted, longest_silence);
}

void Migration::tell_of_links() {
    for (const auto& disk : disks_) {
        const bool lost = disk->link_lost();
        if (lost && links_lost_.insert(disk.get()).second) {
            say("warning",
                fmt::format("disk {}: {}; the link is dialled anew", disk->name(), disk->error()));
        } else if (!lost && links_lost_.erase(disk.get()) != 0) {
            say("info", fmt::format("disk {}: the link is there again", disk->name()));
        }
    }
}

// A new stream of the same migration, which sends what the destination does not have. The link may
// be down meanwhile.
asio::awaitable<void> Migration::revive(size_t index) {
    SourceDisk& disk = *disks_[index];
    const Deadline deadline =
        options_.stall_timeout.count() == 0 ? no_deadline : Clock::now() + options_.stall_timeout;
    say("warning", fmt::format("disk {}: its nbdkit has ended; it is started again", disk.name()));
    co_await disk.revive();
    while (!disk.ended()) {
        try {
            Json to = targets_.at(index);
            co_await replicate(disk, std::move(to), true);
            co_return;
        } catch (const Error& error) {
            const bool unreachable =
                error.kind() == ErrorKind::peer || error.kind() == ErrorKind::timeout;
            if (!unreachable || Clock::now() >= deadline) {
                throw;
            }
        }
        co_await sleep_for(replicate_retry);
    }
}

// --- memory: until the VM is paused, with what is left fitting the downtime

asio::awaitable<void> Migration::memory() {
    std::vector<asio::awaitable<void>> before;
    before.push_back(run_hook("pre-switchover",
                              vm_.hooks.pre_switchover,
                              hook_environment(),
                              patience(site_.timeouts.hook)));
    if (hypervisor_->has_memory()) {
        before.push_back(incoming());
    }
    if (forwards() && !to_plain_server()) {
        before.push_back(get_forward_keys());
    }
    co_await all(std::move(before));
    if (!hypervisor_->has_memory()) {
        co_return;
    }
    if (wants_tunnel_) {
        co_await open_tunnels();
    }
    MemoryLink link;
    link.host = data_address_;
    link.port = prepared_.memory.value().port;
    link.psk_user = prepared_.memory.value().psk_user;
    link.psk_key = psk_key_;
    link.ways = options_.memory;
    journal_->note(Json{{"hypervisor_notes", hypervisor_->notes()}});
    co_await journal_->step(JournalStep::memory);
    report_.times.memory = Clock::now();
    co_await set(std::nullopt, max_bandwidth_); // shared with the disks from here
    co_await hypervisor_->start_outgoing(std::move(link), memory_tuning());
    co_await watch_memory();
}

asio::awaitable<void> Migration::incoming() {
    Json params{{"ways", options_.memory.json()}};
    const milliseconds limit = patience(site_.timeouts.start) + call_patience;
    co_await agent_.call("incoming", std::move(params), limit);
}

// Both ends are up, and have heard of each other, before the VM is paused.
asio::awaitable<void> Migration::open_tunnels() {
    TunnelKey key{"", random_hex(32)};
    std::vector<size_t> nics;
    std::vector<std::string> macs;
    for (size_t i = 0; i < vm_.nics.size(); ++i) {
        if (!vm_.nics[i].addresses.empty()) {
            nics.push_back(i);
            macs.push_back(vm_.nics[i].mac);
        }
    }
    Json params{{"psk_key", key.key}};
    const milliseconds limit = patience(site_.timeouts.start) * nics.size() + call_patience;
    const Json answer = co_await agent_.call("tunnel", std::move(params), limit);
    const std::vector<DataPort> there = read_tunnel(answer, macs);
    co_await settle_tunnels(vm_.name, true); // what an earlier attempt has left
    std::function<void()> work = [this, key, nics, there]() mutable {
        for (size_t i = 0; i < nics.size(); ++i) {
            key.user = there[i].psk_user;
            start_home_end(site_, vm_, nics[i], key, data_address_, there[i].port);
        }
        wait_for_links(vm_.name, site_.timeouts.connect);
    };
    co_await on_a_thread(std::move(work));
}

asio::awaitable<void> Migration::get_forward_keys() {
    Json none = Json::object();
    const Json answer = co_await agent_.call("forward_key", std::move(none), call_patience);
    forward_keys_ = read_forward_key(answer, agent_.disks());
}

// Figures for the progress, and whether there is any, until it is cancelled.
asio::awaitable<void> Migration::show_memory() {
    MemoryConvergence convergence(options_.stall_timeout);
    for (;;) {
        memory_ = co_await hypervisor_->progress();
        show_progress();
        const bool stalled = convergence.stalled(*memory_, Clock::now());
        std::string why;
        if (options_.postcopy_at_once && memory_->passes > 1) {
            why = "after the first pass";
        } else if (stalled && options_.memory.postcopy) {
            why = fmt::format("its memory gets no nearer for {} s (--stall-timeout)",
                              options_.stall_timeout.count());
        }
        if (!why.empty() && !postcopy_) {
            try {
                co_await go_postcopy(why);
            } catch (const Error& error) {
                if (error.kind() != ErrorKind::cancelled) { // else it is paused by now
                    request_stop(error);
                }
                throw;
            }
        } else if (stalled) {
            request_stop(not_converged(fmt::format("it gets no nearer for {} s (--stall-timeout)",
                                                   options_.stall_timeout.count()),
                                       *memory_));
            co_return;
        }
        co_await sleep_for(memory_interval);
    }
}

asio::awaitable<void> Migration::go_postcopy(std::string why) {
    co_await hypervisor_->start_postcopy();
    postcopy_ = true;
    say("info", fmt::format("{} goes on in post-copy: {}", vm_.name, why));
}

// At the deadline it goes on in post-copy, where that is allowed, with as much time for the pause
// to come as the pause itself may last.
asio::awaitable<void> Migration::wait_paused() {
    const auto limit = options_.converge_timeout;
    const Deadline deadline = limit.count() == 0 ? no_deadline : Clock::now() + limit;
    bool late = false;
    try {
        co_await hypervisor_->wait_paused(deadline);
    } catch (const Error& error) {
        late = error.kind() == ErrorKind::timeout && options_.memory.postcopy && !postcopy_;
        if (!late) {
            throw;
        }
    }
    if (late) {
        const std::string why =
            fmt::format("not ready after {} s (--converge-timeout)", limit.count());
        co_await go_postcopy(why);
        const Deadline last = Clock::now() + site_.timeouts.handover;
        co_await hypervisor_->wait_paused(last);
    }
    report_.times.paused = Clock::now();
}

asio::awaitable<void> Migration::watch_memory() {
    const auto limit = options_.converge_timeout;
    asio::cancellation_signal enough;
    bool ended = false;
    Notifier end(executor_);
    // Beside it, and stopped with it: the figures are no reason to fail.
    auto done = asio::bind_cancellation_slot(enough.slot(), [&ended, &end](std::exception_ptr) {
        ended = true;
        end.notify();
    });
    asio::co_spawn(executor_, show_memory(), std::move(done));
    std::exception_ptr failure;
    try {
        co_await wait_paused();
    } catch (const Error& error) {
        const bool slow = error.kind() == ErrorKind::timeout && memory_;
        failure = std::make_exception_ptr(
            slow ? not_converged(
                       fmt::format("not ready after {} s (--converge-timeout)", limit.count()),
                       *memory_)
                 : error);
    } catch (...) {
        failure = std::current_exception(); // the other one must end before this frame does
    }
    co_await asio::this_coro::reset_cancellation_state();
    enough.emit(asio::cancellation_type::terminal);
    while (!ended) {
        co_await end.wait_until(no_deadline);
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

// --- the switchover

SwitchoverParts Migration::parts() {
    SwitchoverParts parts;
    for (const auto& disk : disks_) {
        parts.disks.push_back(disk.get());
    }
    parts.vm = &vm_here_;
    parts.there = agent_prepared_ ? &agent_ : nullptr;
    parts.plain = to_plain_server();
    parts.steps = journal_.get();
    parts.forwards = forwards();
    return parts;
}

void Migration::set_forward_targets() {
    for (size_t i = 0; i < disks_.size(); ++i) {
        SourceDisk& disk = *disks_[i];
        if (to_plain_server()) {
            disk.forward_target = Json{{"uri", uri_of(options_.peer.to_uri, disk.name())}};
        } else {
            const ForwardKey& key = forward_keys_.at(i);
            disk.forward_target = replicate_target(data_address_, key.at, key.psk_key);
        }
    }
}

asio::awaitable<void> Migration::switch_over() {
    if (forwards()) {
        set_forward_targets();
    }
    if (!hypervisor_->has_memory()) {
        report_.times.paused = Clock::now();
    } else {
        co_await let_tunnels_go(vm_.name);
        journal_->note(Json{{"hypervisor_notes", hypervisor_->notes()}}); // paused by now?
    }
    Switchover switchover(parts(), [this](Moment moment) { tell_moment(moment); });
    co_await switchover.run();
    handover_lsns_ = switchover.handover_lsns();
    if (options_.disk_only) {
        turn_network();
    }
}

void Migration::tell_moment(Moment moment) {
    const Deadline now = Clock::now();
    switch (moment) {
    case Moment::memory_sent:
        report_.times.memory_sent = now;
        break;
    case Moment::handed_over:
        report_.times.handed_over = now;
        break;
    case Moment::fencing:
        if (stop_reason_) {
            throw *stop_reason_; // it came while the last answer was on its way
        }
        may_be_fenced_ = true;
        step(PhaseEvent::step); // no way back from here
        break;
    case Moment::fenced:
        report_.times.fenced = now;
        step(PhaseEvent::step);
        if (!options_.disk_only) {
            turn_network(); // its packets find the VM when it comes, not later
        }
        break;
    case Moment::promoted:
        report_.times.promoted = now;
        step(PhaseEvent::step);
        break;
    case Moment::running:
        report_.times.running = now;
        break;
    }
}

// --- verify: both sides as they were at the handover; the VM runs there, and writes

asio::awaitable<void> Migration::verify() {
    co_await journal_->step(JournalStep::verify);
    std::vector<asio::awaitable<void>> comparing;
    for (size_t i = 0; i < disks_.size(); ++i) {
        comparing.push_back(verify_disk(i));
    }
    co_await all(std::move(comparing));
    report_.verified = true;
}

asio::awaitable<void> Migration::verify_disk(size_t index) {
    SourceDisk& disk = *disks_[index];
    const DataPort& there = prepared_.disks.at(index).at;
    Json params{{"to", replicate_target(data_address_, there, psk_key_)}};
    const Json result = co_await disk.call("verify", std::move(params), verify_patience);
    const uint64_t different = result.at("different").get<uint64_t>();
    if (different != 0) {
        throw Error(ErrorKind::state,
                    fmt::format("disk {}: {} of {} blocks are not there what they were here at the "
                                "switchover, the first of them at byte {}. Its image here is kept. "
                                "Look into it before you go on: `drover verify {} {}` compares "
                                "again",
                                disk.name(),
                                different,
                                result.at("blocks").get<uint64_t>(),
                                result.at("first_different").get<uint64_t>(),
                                vm_.name,
                                options_.peer.host));
    }
}

// Beside all else.
void Migration::turn_network() {
    turned_ = turning_ = true;
    auto done = [this](std::exception_ptr failure) {
        turning_ = false;
        if (failure) {
            turn_failure_ = text_of(failure);
        }
        changed_.notify();
    };
    asio::co_spawn(executor_,
                   run_hook("post-switchover",
                            vm_.hooks.post_switchover,
                            hook_environment(),
                            patience(site_.timeouts.hook)),
                   std::move(done));
}

// Likewise. That the VM runs there it does not depend on.
void Migration::turn_names() {
    if (!names_ || named_) {
        return;
    }
    named_ = naming_ = true;
    auto done = [this](std::exception_ptr failure, std::vector<std::string> foreign) {
        naming_ = false;
        tell_names(failure, foreign);
        changed_.notify();
    };
    asio::co_spawn(executor_, move_dns(site_, vm_, hook_environment()), std::move(done));
}

} // namespace drover
