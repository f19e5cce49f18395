// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/coordinator.h"

namespace drover::sim {
namespace {

constexpr uint64_t patience = 20'000;

} // namespace

// --- a disk here

class Coordinator::Disk : public DiskAtSource, DiskCaller {
public:
    Disk(Coordinator& coordinator, size_t index)
        : DiskCaller(coordinator, coordinator.site(), index),
          there_(process_.world.disk(coordinator.to(), index)) {}

    const std::string& name() const override { return name_; }
    asio::awaitable<DiskStanding> standing() override { return process_.wait(do_standing()); }
    asio::awaitable<Quiesced> quiesce(bool hold, std::string token_hash) override {
        return process_.wait(do_quiesce(hold, token_hash));
    }
    asio::awaitable<std::string> token_hash() override { return process_.wait(do_token_hash()); }
    asio::awaitable<std::string> fence(std::string quiesce, std::string first_token) override {
        return process_.wait(do_fence(quiesce, first_token));
    }
    asio::awaitable<void> cancel() override {
        const auto method = [](Plugin& plugin) { return plugin.cancel(""); };
        return process_.wait(call(method));
    }
    asio::awaitable<void> unfence(std::string refusal_token) override {
        const auto method = [refusal_token](Plugin& plugin) {
            return plugin.unfence(refusal_token);
        };
        return process_.wait(call(method));
    }
    asio::awaitable<void> unfence_by_force() override {
        const auto method = [id = migration()](Plugin& plugin) { return plugin.force(id); };
        return process_.wait(call(method));
    }
    asio::awaitable<void> supersede(uint64_t generation) override {
        const auto method = [id = migration(), generation](Plugin& plugin) {
            return plugin.supersede(id, generation);
        };
        return process_.wait(call(method));
    }
    asio::awaitable<void> forward() override { co_return; }
    asio::awaitable<void> finish() override {
        const auto method = [id = migration()](Plugin& plugin) { return plugin.finish(id); };
        return process_.wait(call(method));
    }

    Task<> replicate(uint64_t generation) {
        refusal_hash_ = there_.visible.refusal_hash;
        const auto method = [id = migration(), generation](Plugin& plugin) {
            return plugin.replicate(id, generation);
        };
        co_await call(method);
    }
    // Nobody uses it any more.
    void stop() { process_.world.kill_plugin(disk_); }
    bool has_failed() const {
        return !disk_.plugin || !disk_.plugin->tracked() || disk_.plugin->stream()->failed();
    }
    bool is_ready(uint64_t left) const {
        if (has_failed()) {
            return false;
        }
        const Source::Progress progress = disk_.plugin->tracked()->source.progress();
        return progress.dirty_bytes + progress.lag_bytes <= left;
    }

private:
    const std::string& migration() const { return process_.world.journal.migration; }
    Task<DiskStanding> do_standing() {
        co_await wait_until_served();
        co_await process_.world.turn();
        co_await wait_until_served();
        DiskStanding standing = standing_in(disk_.plugin->record());
        standing.in_use = process_.world.vm().at[disk_.site] == sim::Machine::running;
        co_return standing;
    }
    Task<Quiesced> do_quiesce(bool hold, std::string token_hash) {
        const auto method = [hold, token_hash](Plugin& plugin) {
            return plugin.quiesce(hold, token_hash, patience / 2);
        };
        const Plugin::Quiesced done = co_await call(method);
        Quiesced quiesced;
        quiesced.id = done.id;
        quiesced.token_hash = done.token_hash;
        quiesced.lsn = done.lsn.v;
        made_token_hash_ = done.token_hash;
        co_return quiesced;
    }
    Task<std::string> do_token_hash() {
        const auto quiescing = [this] {
            const Record* record = disk_.plugin ? &disk_.plugin->record() : nullptr;
            return !made_token_hash_.empty() ||
                   (record != nullptr && !record->quiesce.empty() &&
                    (record->stage == Stage::quiescing || record->stage == Stage::quiesced));
        };
        if (!co_await process_.world.until(quiescing, patience)) {
            throw Error(ErrorKind::timeout, "no handover");
        }
        co_return made_token_hash_.empty() ? disk_.plugin->record().token_hash : made_token_hash_;
    }
    Task<std::string> do_fence(std::string quiesce, std::string first_token) {
        FenceRequest request;
        request.quiesce_id = quiesce;
        request.refusal_hash = refusal_hash_;
        request.token = first_token;
        const auto method = [request](Plugin& plugin) { return plugin.fence(request); };
        co_return co_await call(method);
    }

    sim::Disk& there_;
    std::string refusal_hash_, made_token_hash_;
};

// --- the VM here

class Coordinator::Machine : public VmAtSource {
public:
    explicit Machine(Coordinator& coordinator)
        : coordinator_(coordinator), world_(coordinator.world) {}

    bool has_memory() const override { return world_.plan.memory; }
    bool was_paused() const override { return false; }
    asio::awaitable<void> finish_memory() override { return coordinator_.wait(do_finish()); }
    asio::awaitable<bool> is_there() override { co_return is_here(); }
    asio::awaitable<void> resume() override { return coordinator_.wait(do_resume()); }
    asio::awaitable<void> destroy() override { return coordinator_.wait(do_destroy()); }

private:
    sim::Machine at(size_t site) const { return world_.vm().at[site]; }
    bool is_here() const {
        return at(coordinator_.site()) == sim::Machine::running ||
               at(coordinator_.site()) == sim::Machine::paused;
    }
    // Nothing new comes from its guest while its hypervisor finishes what is under way.
    struct Held {
        Vm& vm;
        explicit Held(Vm& its_vm) : vm(its_vm) { vm.held = true; }
        ~Held() { vm.held = false; }
    };
    Task<> do_finish() {
        const size_t here = coordinator_.site(), there = coordinator_.to();
        {
            const Held held(world_.vm());
            const auto drained = [&] {
                return world_.vm().idle() || at(here) != sim::Machine::running;
            };
            if (!co_await world_.until(drained, patience)) {
                throw Error(ErrorKind::timeout, "the VM could not be paused");
            }
            if (at(here) != sim::Machine::running) {
                throw Error(ErrorKind::state, "the VM is gone");
            }
            world_.vm().pause(here);
        }
        co_await world_.pause(world_.arrival() - world_.now());
        const auto open = [&] {
            return world_.reachable(there) && at(there) == sim::Machine::incoming;
        };
        if (!co_await world_.until(open, world_.random.below(3000))) {
            throw Error(ErrorKind::peer, "the memory did not get through");
        }
        if (at(here) != sim::Machine::paused) {
            throw Error(ErrorKind::state, "the VM is gone");
        }
        world_.vm().load(there, here);
    }
    Task<> do_resume() {
        const size_t here = coordinator_.site();
        const auto served = [&] { return world_.is_served(here) || !is_here(); };
        if (!co_await world_.until(served, patience)) {
            throw Error(ErrorKind::timeout, "the VM's disks are not served");
        }
        if (is_here()) {
            world_.vm().resume(here);
        }
    }
    Task<> do_destroy() {
        co_await world_.turn();
        if (at(coordinator_.site()) == sim::Machine::running) {
            world_.fail("a VM that runs was destroyed at its source");
        }
        world_.vm().lose(coordinator_.site());
    }

    Coordinator& coordinator_;
    World& world_;
};

// --- the agent at the other side, as peer_agent.cpp has it

class Coordinator::Peer : public DestinationSide {
public:
    explicit Peer(Coordinator& coordinator)
        : coordinator_(coordinator), world_(coordinator.world) {}

    asio::awaitable<std::vector<DiskStanding>> take_over() override {
        return coordinator_.wait(do_take_over());
    }
    asio::awaitable<void> loaded() override {
        const auto method = [](Agent& agent, uint64_t number) { return agent.loaded(number); };
        co_await call_now(method);
    }
    asio::awaitable<void> promote(std::string token) override {
        const auto method = [token](Agent& agent, uint64_t number) {
            return agent.promote(number, token);
        };
        co_await call_now(method);
    }
    asio::awaitable<void> run(bool) override {
        const auto method = [](Agent& agent, uint64_t number) { return agent.run_vm(number); };
        co_await call_now(method);
    }
    asio::awaitable<std::vector<std::string>> refuse() override {
        const auto method = [](Agent& agent, uint64_t number) { return agent.refuse(number); };
        return coordinator_.wait(call_acting(method));
    }
    asio::awaitable<void> supersede(uint64_t generation) override {
        const auto method = [generation](Agent& agent, uint64_t number) {
            return agent.supersede(number, generation);
        };
        return coordinator_.wait(call_acting(method));
    }
    asio::awaitable<void> finish() override {
        const auto method = [](Agent& agent, uint64_t number) { return agent.finish(number); };
        return coordinator_.wait(call_acting(method));
    }

    Task<> prepare(uint64_t generation) {
        co_await start();
        acts_ = true;
        const auto method = [generation](Agent& agent, uint64_t number) {
            return agent.prepare(number, generation);
        };
        co_await call(method, ++asked_);
    }
    // Its input is closed: it ends.
    void end() {
        if (const auto agent = agent_.lock(); agent && world_.agent == agent) {
            world_.agent.reset();
        }
    }

private:
    bool is_connected() const {
        const auto agent = agent_.lock();
        return agent && !agent->ended();
    }

    // There is one agent: another one that acts for this migration is told to end, and cleans up
    // before it does.
    Task<> start() {
        const size_t there = coordinator_.to();
        co_await world_.pause(world_.arrival() - world_.now());
        const auto near = [&] { return world_.reachable(there); };
        if (!co_await world_.until(near, patience)) {
            throw Error(ErrorKind::timeout, "no way to the destination", ETIMEDOUT);
        }
        const std::weak_ptr<Agent> before = world_.agent;
        if (!before.expired() && world_.random.chance(70)) {
            world_.hit(Probe::agent_displaced);
            try {
                Task<> leave = before.lock()->abandon();
                co_await ask(world_, there, before, std::move(leave), patience / 4);
            } catch (const Error& error) {
                world_.trace("an agent is killed: {}", error.what());
            }
        }
        doubtful_ = acts_ = false;
        asked_ = 0;
        world_.agent.reset();
        world_.agent = std::make_shared<Agent>(
            world_, there, std::weak_ptr<Process>(process()), world_.journal.migration);
        agent_ = world_.agent;
        world_.trace("a new agent");
    }
    std::shared_ptr<Process> process() { return coordinator_.shared_from_this(); }

    // In the order of its callers, as they are sent.
    template <typename Method>
    asio::awaitable<void> call_now(Method method) {
        Task<> work = call(method, ++asked_);
        co_await coordinator_.wait(std::move(work));
    }
    // method(Agent&, number)
    template <typename Method>
    auto call(Method method, uint64_t number)
        -> decltype(method(std::declval<Agent&>(), uint64_t{})) {
        const auto agent = agent_;
        if (agent.expired()) {
            throw Error(ErrorKind::peer, "the agent is gone", ENOTCONN);
        }
        auto work = method(*agent.lock(), number);
        try {
            co_return co_await ask(world_, coordinator_.site(), agent, std::move(work), patience);
        } catch (const Error& error) {
            if (error.kind() == ErrorKind::timeout || error.kind() == ErrorKind::peer) {
                doubtful_ = true;
            }
            throw;
        }
    }
    // By an agent that is known to answer and to act for this migration.
    template <typename Method>
    auto call_once(Method method) -> decltype(method(std::declval<Agent&>(), uint64_t{})) {
        if (!is_connected() || doubtful_) {
            co_await start();
        }
        if (!acts_) {
            co_await take();
        }
        co_return co_await call(method, ++asked_);
    }
    Task<std::vector<DiskStanding>> take() {
        const auto method = [](Agent& agent, uint64_t number) { return agent.take_over(number); };
        std::vector<DiskStanding> standings = co_await call(method, ++asked_);
        acts_ = true;
        co_return standings;
    }
    template <typename Method>
    auto call_acting(Method method) -> decltype(method(std::declval<Agent&>(), uint64_t{})) {
        const bool was_connected = is_connected();
        try {
            co_return co_await call_once(method);
        } catch (const Error&) {
            if (!was_connected || is_connected()) {
                throw;
            }
        }
        co_return co_await call_once(method); // of another agent
    }
    Task<std::vector<DiskStanding>> do_take_over() {
        if (!is_connected() || doubtful_) {
            co_await start();
        }
        co_return co_await take();
    }

    Coordinator& coordinator_;
    World& world_;
    std::weak_ptr<Agent> agent_;
    uint64_t asked_ = 0;
    bool doubtful_ = false, acts_ = false;
};

// --- the coordinator

Coordinator::Coordinator(World& its_world)
    : Process(its_world, its_world.journal.from), vm_(std::make_unique<Machine>(*this)),
      peer_(std::make_unique<Peer>(*this)), steps_(*this, &its_world.journal.last) {
    for (size_t i = 0; i < world.plan.disks.size(); ++i) {
        disks_.push_back(std::make_unique<Disk>(*this, i));
    }
}

Coordinator::~Coordinator() {
    end();
}

SwitchoverParts Coordinator::parts() {
    SwitchoverParts parts;
    for (const auto& disk : disks_) {
        parts.disks.push_back(disk.get());
    }
    parts.vm = vm_.get();
    parts.there = peer_.get();
    parts.steps = &steps_;
    return parts;
}

Task<> Coordinator::prepare() {
    co_await run(steps_.step(JournalStep::prepare));
    co_await peer_->prepare(world.journal.generation);
    co_await run(steps_.step(JournalStep::replicate));
    for (const auto& disk : disks_) {
        co_await disk->replicate(world.journal.generation);
    }
}

// Until all of them are ready, or nearly.
Task<> Coordinator::copy() {
    const uint64_t left = world.random.chance(50) ? 0 : world.random.below(50'000);
    const auto settled = [&] {
        return std::any_of(disks_.begin(),
                           disks_.end(),
                           [](const auto& disk) { return disk->has_failed(); }) ||
               std::all_of(disks_.begin(), disks_.end(), [&](const auto& disk) {
                   return disk->is_ready(left);
               });
    };
    co_await world.until(settled, world.random.between(1, 20'000));
    if (world.random.chance(20)) {
        co_await world.pause(world.random.below(2000));
    }
    if (world.random.chance(5) && !world.faults_over) {
        world.hit(Probe::operator_cancelled);
        throw Error(ErrorKind::cancelled, "the operator has changed his mind");
    }
}

Task<> Coordinator::migrate() {
    std::optional<Error> failure;
    try {
        co_await prepare();
        co_await copy();
        co_await run(steps_.step(JournalStep::memory));
        Switchover switchover(parts(), [](Moment) {});
        co_await run(switchover.run());
    } catch (const Error& error) {
        failure = error;
    }
    if (failure) {
        world.trace("not migrated: {}", failure->what());
        co_await go_back(false);
    } else {
        world.hit(Probe::migrated);
        co_await conclude_there();
    }
    peer_->end();
    ended_ = true;
}

Task<> Coordinator::recover(bool force) {
    co_await go_back(force);
    peer_->end();
    ended_ = true;
}

Task<> Coordinator::go_back(bool force) {
    Recovery::Plan plan;
    plan.migration = world.journal.migration;
    plan.force = force;
    const Recovery::Trouble trouble = [this](const std::string& text) {
        world.trace("trouble: {}", text);
    };
    Recovery recovery(parts(), plan, trouble);
    Verdict verdict = Verdict::undecided;
    try {
        verdict = co_await run(recovery.run());
    } catch (const Error& error) {
        world.trace("no recovery: {}", error.what());
    }
    world.trace("recovered: {} {}",
                verdict == Verdict::here    ? "here"
                : verdict == Verdict::there ? "there"
                                            : "undecided",
                recovery.why());
    if (recovery.forced()) {
        world.hit(Probe::forced);
    }
    switch (verdict) {
    case Verdict::here:
        world.hit(Probe::verdict_here);
        if (!recovery.more_to_do()) {
            co_await note(JournalStep::over);
        }
        break;
    case Verdict::there:
        world.hit(Probe::verdict_there);
        world.hosts[to()].disowned = false; // it has answered after all
        co_await conclude_there();
        break;
    case Verdict::undecided:
        world.hit(Probe::verdict_undecided);
        break;
    }
}

Task<> Coordinator::conclude_there() {
    troubles_ = 0;
    const Recovery::Trouble trouble = [this](const std::string& text) {
        ++troubles_;
        world.trace("trouble: {}", text);
    };
    if (!world.plan.memory) {
        world.vm().lose(site()); // its operator's hook
    }
    co_await run(let_go(parts(), trouble));
    if (troubles_ == 0) {
        for (const auto& disk : disks_) {
            disk->stop();
        }
        co_await note(JournalStep::over);
    }
}

Task<> Coordinator::note(JournalStep step) {
    try {
        co_await run(steps_.step(step));
    } catch (const Error& error) {
        world.trace("trouble: {}", error.what());
    }
}

} // namespace drover::sim
