// SPDX-License-Identifier: GPL-2.0-or-later
// Simulated migrations, one for each seed.
//
//   sim [--seeds N] [--from SEED]   N seeds (default 2000); prints the first that fails, and how
//                                   often the rarer things happened: none may be missing
//   sim --seed SEED [--trace]       that one alone
//   sim --rules                     breaks one rule of the adapters after the other: each has to be
//                                   found (those of the core: test/sim/mutations)
//   --break N                       with that rule broken
#include "test/sim/world.h"

#include <cstdlib>
#include <cstring>
#include <string_view>

using namespace drover;
using namespace drover::sim;

namespace {

// What went wrong with this seed; "": nothing.
std::string run_seed(uint64_t seed, Rule broken, bool trace, Probes& probes) {
    try {
        World world(seed, broken, trace, probes);
        world.run();
        return "";
    } catch (const Failure& failure) {
        return failure.what();
    } catch (const std::exception& error) {
        return fmt::format("exception: {}", error.what());
    }
}

int check_rules(uint64_t from) {
    constexpr uint64_t most = 60'000;
    int missed = 0;
    for (int i = 1; i < static_cast<int>(Rule::count_); ++i) {
        const auto rule = static_cast<Rule>(i);
        Probes probes{};
        uint64_t seed = from;
        std::string found;
        for (; found.empty() && seed < from + most; ++seed) {
            found = run_seed(seed, rule, false, probes);
            if (found.starts_with("exception")) {
                found.clear(); // of the broken adapter: nobody has noticed anything
            }
        }
        fmt::print("{:2} {:<62} {}\n",
                   i,
                   to_string(rule),
                   found.empty() ? "NOT MISSED" : fmt::format("seed {}: {}", seed - 1, found));
        missed += found.empty() ? 1 : 0;
    }
    return missed == 0 ? 0 : 1;
}

int run_seeds(uint64_t from, uint64_t count, Rule broken, bool all) {
    Probes probes{};
    for (uint64_t seed = from; seed < from + count; ++seed) {
        const std::string found = run_seed(seed, broken, false, probes);
        if (!found.empty()) {
            fmt::print("seed {}: {}\nsee it with: sim --seed {} --trace\n", seed, found, seed);
            return 1;
        }
    }
    int never = 0;
    for (size_t i = 0; i < probes.size(); ++i) {
        fmt::print("{:<44}{:>12}\n", probe_texts[i], probes[i]);
        never += probes[i] == 0 ? 1 : 0;
    }
    if (all && never > 0) {
        fmt::print("{} of these never happened, so nothing was seen of them\n", never);
        return 1;
    }
    fmt::print("{} seeds from {}: good\n", count, from);
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    uint64_t seeds = 2000, from = 1;
    std::optional<uint64_t> one;
    auto broken = Rule::none;
    bool trace = false, rules = false, all = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        const bool more = i + 1 < argc;
        if (word == "--rules") {
            rules = true;
        } else if (word == "--trace") {
            trace = true;
        } else if (word == "--all") {
            all = true;
        } else if (word == "--seeds" && more) {
            seeds = std::strtoull(argv[++i], nullptr, 0);
        } else if (word == "--from" && more) {
            from = std::strtoull(argv[++i], nullptr, 0);
        } else if (word == "--seed" && more) {
            one = std::strtoull(argv[++i], nullptr, 0);
        } else if (word == "--break" && more) {
            broken = static_cast<Rule>(std::atoi(argv[++i]));
        } else {
            fmt::print(
                stderr,
                "usage: sim [--seeds N] [--from SEED] [--all] | --seed SEED [--trace] | --rules; "
                "[--break RULE]\n--all: fail where something of the list never happened\n");
            return 2;
        }
    }
    if (rules) {
        return check_rules(from);
    }
    if (one) {
        Probes probes{};
        const std::string found = run_seed(*one, broken, trace, probes);
        fmt::print("{}\n", found.empty() ? "good" : found);
        return found.empty() ? 0 : 1;
    }
    return run_seeds(from, seeds, broken, all);
}
