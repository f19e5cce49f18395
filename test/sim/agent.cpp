// SPDX-License-Identifier: GPL-2.0-or-later
#include "test/sim/agent.h"

namespace drover::sim {

asio::awaitable<void> Steps::step(JournalStep step) {
    return process_.wait(write(step));
}

Task<> Steps::write(JournalStep step) {
    World& world = process_.world;
    co_await world.turn();
    if (world.random.rarely(world.plan.bad_saves) && !world.faults_over) {
        world.hit(Probe::step_not_noted);
        throw Error(ErrorKind::io, "the journal could not be written", ENOSPC);
    }
    if (keep_ != nullptr) {
        *keep_ = step;
        world.trace("journal: {}", step_name(step));
    }
    co_await world.turn();
}

Task<> DiskCaller::wait_until_served() {
    const auto served = [this] { return disk_.plugin && disk_.plugin->loaded(); };
    if (!co_await process_.world.until(served, patience)) {
        throw Error(ErrorKind::peer, name_ + " is not served", ECONNREFUSED);
    }
}

// --- a disk there

class Agent::Disk : public DiskAtDestination, DiskCaller {
public:
    Disk(Agent& agent, size_t index) : DiskCaller(agent, agent.site(), index), agent_(agent) {}

    const std::string& name() const override { return name_; }
    asio::awaitable<DiskStanding> standing() override { co_return standing_in(disk_.visible); }
    asio::awaitable<void> promote(std::string token) override {
        return process_.wait(do_promote(token));
    }
    asio::awaitable<void> did_not_run() override { return process_.wait(do_did_not_run()); }
    asio::awaitable<std::string> refuse() override { return process_.wait(do_refuse()); }
    asio::awaitable<void> finish() override { return process_.wait(do_finish()); }

    Task<> prepare(uint64_t generation) {
        ReplicaRequest request;
        request.migration = agent_.migration_;
        request.generation = generation;
        request.uuid = agent_.world.disk(1 - agent_.site(), disk_.index).visible.uuid;
        const auto method = [request](Plugin& plugin) { return plugin.prepare(request); };
        co_await call(method);
    }
    Task<> supersede(uint64_t generation) {
        const auto method = [this, generation](Plugin& plugin) {
            return plugin.supersede(agent_.migration_, generation);
        };
        co_await call(method);
    }
    bool is_consistent() const {
        const Record& record = disk_.visible;
        return record.migration == agent_.migration_ && record.role == Role::replica &&
               record.stage != Stage::refused && record.consistent;
    }

private:
    void require_this_migration() const {
        if (disk_.visible.migration != agent_.migration_) {
            throw Error(ErrorKind::state, "nothing of this migration is here");
        }
    }
    Task<> do_promote(std::string token) {
        require_this_migration();
        const auto method = [this, token](Plugin& plugin) {
            return plugin.promote(agent_.migration_, token);
        };
        co_await call(method);
    }
    Task<> do_did_not_run() {
        require_this_migration();
        const auto method = [this](Plugin& plugin) {
            return plugin.did_not_run(agent_.migration_);
        };
        co_await call(method);
    }
    Task<std::string> do_refuse() {
        co_await process_.world.turn();
        if (disk_.visible.uuid.empty()) {
            co_return std::string();
        }
        if (const auto token = refusal_token_of(disk_.visible, agent_.migration_)) {
            co_return *token;
        }
        const auto method = [this](Plugin& plugin) { return plugin.refuse(agent_.migration_); };
        co_return co_await call(method);
    }
    Task<> do_finish() {
        require_this_migration();
        const auto method = [this](Plugin& plugin) { return plugin.finish(agent_.migration_); };
        co_await call(method);
    }

    Agent& agent_;
};

// --- its hypervisor

class Agent::Machine : public VmAtDestination {
public:
    explicit Machine(Agent& agent) : agent_(agent) {}

    sim::Machine& at() const { return agent_.world.vm().at[agent_.site()]; }
    bool ready() const override {
        return at() == sim::Machine::loaded || at() == sim::Machine::running;
    }
    // An agent before this one may have told it.
    bool may_have_run() const override { return told_ || !own_; }
    void start() {
        agent_.world.vm().lose(agent_.site()); // of an earlier migration
        at() = sim::Machine::incoming;
        own_ = true;
    }
    asio::awaitable<void> run(bool) override { return agent_.wait(do_run()); }
    asio::awaitable<void> destroy() override { return agent_.wait(do_destroy()); }

private:
    Task<> do_run() {
        World& world = agent_.world;
        co_await world.turn();
        if (at() == sim::Machine::running) {
            co_return;
        }
        if (!ready()) {
            throw Error(ErrorKind::state, "no hypervisor holds the memory");
        }
        if (world.random.chance(4) && !world.faults_over) {
            world.hit(Probe::did_not_run);
            throw Error(ErrorKind::state, "the hypervisor says no");
        }
        const auto served = [&] { return world.is_served(agent_.site()) || !ready(); };
        if (!co_await world.until(served, 20'000)) {
            throw Error(ErrorKind::state, "its disks are not served");
        }
        if (!ready()) {
            throw Error(ErrorKind::state, "the hypervisor has died");
        }
        told_ = true;
        world.vm().resume(agent_.site());
        if (world.random.chance(4) && !world.faults_over) {
            throw Error(ErrorKind::timeout, "the hypervisor gives no answer");
        }
    }
    Task<> do_destroy() {
        co_await agent_.world.turn();
        if (at() == sim::Machine::running) {
            agent_.world.fail("a VM that runs was destroyed at its destination");
        }
        agent_.world.vm().lose(agent_.site());
    }

    Agent& agent_;
    bool told_ = false, own_ = false;
};

// --- the agent

// One call at a time.
class Agent::Turn {
public:
    explicit Turn(bool& busy) : busy_(busy) { busy_ = true; }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { busy_ = false; }

private:
    bool& busy_;
};

// The calls of a connection, in their order.
template <typename Result>
Task<Result> Agent::in_turn(uint64_t number, Task<Result> call) {
    const auto free = [&] { return !busy_ && served_ + 1 == number; };
    co_await world.until(free);
    const Turn one(busy_);
    ++served_;
    if (over_) {
        throw Error(ErrorKind::state, "the migration is over");
    }
    co_return co_await call;
}

Agent::Agent(World& its_world, size_t its_site, std::weak_ptr<Process> peer, std::string migration)
    : Process(its_world, its_site), peer_(std::move(peer)), migration_(std::move(migration)),
      steps_(*this, nullptr) {
    Takeover::Parts parts;
    for (size_t i = 0; i < world.plan.disks.size(); ++i) {
        disks_.push_back(std::make_unique<Disk>(*this, i));
        parts.disks.push_back(disks_.back().get());
    }
    if (world.plan.memory) {
        vm_ = std::make_unique<Machine>(*this);
    }
    parts.vm = vm_.get();
    parts.steps = &steps_;
    takeover_ = std::make_unique<Takeover>(std::move(parts), migration_);
    world.spawn(owner, watch());
}

Agent::~Agent() {
    end();
}

// Should whoever has started it be gone, or silent for too long.
Task<> Agent::watch() {
    const auto lost = [this] {
        return peer_.expired() || world.partitioned || !world.hosts[1 - site()].up;
    };
    for (;;) {
        co_await world.until(lost);
        const auto back = [&] { return !lost(); };
        const uint64_t limit = peer_.expired() ? world.random.below(200) : 3000;
        if (co_await world.until(back, limit)) {
            continue;
        }
        co_await abandon();
        co_return;
    }
}

Task<> Agent::abandon() {
    const auto free = [this] { return !busy_; };
    co_await world.until(free);
    const Turn one(busy_);
    if (over_) {
        co_return;
    }
    if (!acting_ || takeover_->promoted()) {
        over_ = true;
        co_return;
    }
    const bool whole = std::all_of(
        disks_.begin(), disks_.end(), [](const auto& disk) { return disk->is_consistent(); });
    try {
        if (whole) {
            world.hit(Probe::put_down);
            if (vm_) {
                co_await run(vm_->destroy());
            }
        } else {
            co_await run(takeover_->refuse());
        }
    } catch (const Error& error) {
        world.trace("the agent leaves something behind: {}", error.what());
    }
    over_ = true;
}

Task<> Agent::prepare(uint64_t number, uint64_t generation) {
    return in_turn(number, do_prepare(generation));
}

Task<> Agent::do_prepare(uint64_t generation) {
    co_await run(steps_.step(JournalStep::prepare));
    acting_ = true;
    for (const auto& disk : disks_) {
        co_await disk->prepare(generation);
    }
    if (vm_) {
        if (vm_->at() == sim::Machine::running) {
            world.fail("a migration to where the VM runs was begun");
        }
        vm_->start();
    }
}

Task<std::vector<DiskStanding>> Agent::take_over(uint64_t number) {
    return in_turn(number, do_take_over());
}

Task<std::vector<DiskStanding>> Agent::do_take_over() {
    acting_ = true;
    co_return co_await run(takeover_->standing());
}

// Others are carried out meanwhile.
Task<> Agent::loaded(uint64_t number) {
    const auto now = []() -> Task<> { co_return; };
    co_await in_turn(number, now());
    const auto settled = [this] {
        return over_ || vm_->ready() || vm_->at() == sim::Machine::none;
    };
    co_await world.until(settled);
    if (!vm_->ready()) {
        throw Error(ErrorKind::state, "the memory did not come");
    }
}

Task<> Agent::promote(uint64_t number, std::string token) {
    return in_turn(number, run(takeover_->promote(std::move(token))));
}

Task<> Agent::run_vm(uint64_t number) {
    return in_turn(number, run(takeover_->run(false)));
}

Task<std::vector<std::string>> Agent::refuse(uint64_t number) {
    return in_turn(number, do_refuse());
}

Task<std::vector<std::string>> Agent::do_refuse() {
    std::vector<std::string> tokens = co_await run(takeover_->refuse());
    over_ = true;
    co_return tokens;
}

Task<> Agent::supersede(uint64_t number, uint64_t generation) {
    return in_turn(number, do_supersede(generation));
}

Task<> Agent::do_supersede(uint64_t generation) {
    for (const auto& disk : disks_) {
        co_await disk->supersede(generation);
    }
    world.vm().lose(site());
    over_ = true;
}

Task<> Agent::finish(uint64_t number) {
    return in_turn(number, do_finish());
}

Task<> Agent::do_finish() {
    co_await run(takeover_->finish());
    over_ = true;
}

} // namespace drover::sim
