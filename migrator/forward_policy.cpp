// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/forward_policy.h"

#include "common/error.h"
#include "migrator/paths.h"

#include <algorithm>
#include <memory>
#include <set>

#include <nftables/libnftables.h>
#include <unistd.h>

namespace drover {
namespace {

using Json = nlohmann::json;

struct FreeContext {
    void operator()(nft_ctx* context) const { nft_ctx_free(context); }
};

std::string text(const Json& object, const char* key) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() && found->is_string()
               ? found->get<std::string>()
               : "";
}

// The first key of an expression: its kind.
std::string kind_of(const Json& expression) {
    return expression.is_object() && !expression.empty() ? expression.begin().key() : "";
}

enum class Effect {
    none,    // no verdict, or one that does not concern the bridge's frames for certain
    accepts, // all frames of the bridge
    drops,   // everything
    enters,  // unconditionally, another chain
    unknown, // may accept some
};

struct Rule {
    Effect effect = Effect::none;
    std::string target; // of `enters`
};

// Whether it is true for every frame of the bridge.
bool matches_bridge(const Json& match, const std::string& bridge) {
    if (text(match, "op") != "==" || text(match, "right") != bridge || !match.contains("left")) {
        return false;
    }
    const Json& left = match.at("left");
    static const std::set<std::string> names{"iifname", "oifname", "ibrname", "obrname"};
    return left.is_object() && left.contains("meta") && names.contains(text(left["meta"], "key"));
}

Rule read_rule(const Json& rule, const std::string& bridge) {
    bool always = true, for_bridge = true, understood = true;
    std::string verdict, target;
    const Json expressions = rule.value("expr", Json::array());
    for (const Json& expression : expressions) {
        const std::string kind = kind_of(expression);
        if (kind == "match") {
            always = false;
            for_bridge = for_bridge && matches_bridge(expression["match"], bridge);
        } else if (kind == "accept" || kind == "drop" || kind == "reject" || kind == "return") {
            verdict = kind;
        } else if (kind == "jump" || kind == "goto") {
            verdict = kind;
            target = text(expression[kind], "target");
        } else if (kind != "counter" && kind != "log") {
            understood = false;
        }
    }
    if (!understood) {
        return {Effect::unknown, ""};
    }
    if (verdict == "accept") {
        return {for_bridge ? Effect::accepts : Effect::unknown, ""};
    }
    if ((verdict == "drop" || verdict == "reject") && always) {
        return {Effect::drops, ""};
    }
    if (verdict == "jump" && always) {
        return {Effect::enters, target};
    }
    return {verdict == "jump" || verdict == "goto" || verdict == "return" ? Effect::unknown
                                                                          : Effect::none,
            ""};
}

class Ruleset {
public:
    Ruleset(const Json& ruleset, std::string bridge) : bridge_(std::move(bridge)) {
        const auto list = ruleset.is_object() ? ruleset.find("nftables") : ruleset.end();
        if (!ruleset.is_object() || list == ruleset.end() || !list->is_array()) {
            throw Error(ErrorKind::io, "nf_tables: what the library gives is no ruleset");
        }
        for (const Json& entry : *list) {
            if (kind_of(entry) == "chain") {
                chains_.push_back(entry["chain"]);
            } else if (kind_of(entry) == "rule") {
                rules_.push_back(entry["rule"]);
            }
        }
    }

    std::vector<DroppingChain> dropping(BridgeHooks hooks) const {
        std::vector<DroppingChain> found;
        for (const Json& chain : chains_) {
            DroppingChain one{text(chain, "family"), text(chain, "table"), text(chain, "name")};
            if (text(chain, "hook") == "forward" && is_met(one.family, hooks) &&
                drops(one, text(chain, "policy") == "drop")) {
                one.to_add = command_for(one);
                found.push_back(std::move(one));
            }
        }
        return found;
    }

private:
    static bool is_met(const std::string& family, BridgeHooks hooks) {
        return family == "bridge" || (family == "ip" && hooks.ipv4) ||
               (family == "ip6" && hooks.ipv6) || (family == "inet" && (hooks.ipv4 || hooks.ipv6));
    }

    std::vector<Rule> rules_of(const DroppingChain& chain, const std::string& name) const {
        std::vector<Rule> found;
        for (const Json& rule : rules_) {
            if (text(rule, "family") == chain.family && text(rule, "table") == chain.table &&
                text(rule, "chain") == name) {
                found.push_back(read_rule(rule, bridge_));
            }
        }
        return found;
    }

    // Chains that it enters are looked at too, as Docker's rules of the operator are in one; what
    // these enter is not.
    bool drops(DroppingChain& chain, bool by_policy) const {
        for (const Rule& rule : rules_of(chain, chain.name)) {
            std::vector<Rule> steps{rule};
            if (rule.effect == Effect::enters) {
                steps = rules_of(chain, rule.target);
            }
            for (const Rule& step : steps) {
                if (step.effect == Effect::accepts) {
                    return chain.may_accept = false;
                }
                if (step.effect == Effect::drops) {
                    return true;
                }
                chain.may_accept = chain.may_accept || step.effect != Effect::none;
            }
        }
        return by_policy;
    }

    bool has_chain(const DroppingChain& like, const std::string& name) const {
        return std::any_of(chains_.begin(), chains_.end(), [&](const Json& chain) {
            return text(chain, "family") == like.family && text(chain, "table") == like.table &&
                   text(chain, "name") == name;
        });
    }

    // By the tool whose chain it is, as others write it anew.
    std::string command_for(const DroppingChain& chain) const {
        const bool of_iptables = (chain.family == "ip" || chain.family == "ip6") &&
                                 chain.table == "filter" && chain.name == "FORWARD";
        const std::string tool = chain.family == "ip6" ? "ip6tables" : "iptables";
        if (of_iptables &&
            has_chain(chain,
                      chain.family == "ip6" ? "ufw6-before-forward" : "ufw-before-forward")) {
            return fmt::format("ufw route allow in on {0} out on {0}", bridge_);
        }
        if (of_iptables) {
            return fmt::format("{0} -I {1} -i {2} -o {2} -j ACCEPT",
                               tool,
                               has_chain(chain, "DOCKER-USER") ? "DOCKER-USER" : "FORWARD",
                               bridge_);
        }
        const std::string match = chain.family == "bridge"
                                      ? fmt::format("meta ibrname \"{}\"", bridge_)
                                      : fmt::format("iifname \"{0}\" oifname \"{0}\"", bridge_);
        return fmt::format(
            "nft 'insert rule {} {} {} {} accept'", chain.family, chain.table, chain.name, match);
    }

    const std::string bridge_;
    std::vector<Json> chains_, rules_;
};

bool is_on(const std::string& file) {
    try {
        return read_file(file).starts_with('1');
    } catch (const Error&) {
        return false; // br_netfilter is not loaded
    }
}

BridgeHooks hooks_of(const std::string& bridge) {
    const auto either = [&bridge](const char* version) {
        return is_on(fmt::format("/proc/sys/net/bridge/bridge-nf-call-{}", version)) ||
               is_on(fmt::format("/sys/class/net/{}/bridge/nf_call_{}", bridge, version));
    };
    return {either("iptables"), either("ip6tables")};
}

Json read_ruleset() {
    const std::unique_ptr<nft_ctx, FreeContext> context(nft_ctx_new(NFT_CTX_DEFAULT));
    if (!context) {
        throw std::bad_alloc();
    }
    nft_ctx_buffer_output(context.get());
    nft_ctx_buffer_error(context.get());
    nft_ctx_output_set_flags(context.get(), NFT_CTX_OUTPUT_JSON);
    if (nft_run_cmd_from_buffer(context.get(), "list ruleset") != 0) {
        throw Error(ErrorKind::io,
                    fmt::format("nf_tables: {}", nft_ctx_get_error_buffer(context.get())));
    }
    Json ruleset = Json::parse(nft_ctx_get_output_buffer(context.get()), nullptr, false);
    return ruleset;
}

Finding
finding_of(const DroppingChain& chain, const std::string& bridge, const std::string& whose) {
    return {chain.may_accept ? Level::warning : Level::problem,
            "firewall",
            fmt::format("chain {} of table {} {} drops what passes through bridge {}{}, {} too",
                        chain.name,
                        chain.family,
                        chain.table,
                        bridge,
                        chain.may_accept ? ", unless one of its rules accepts it" : "",
                        whose),
            fmt::format("`{}`, and the same where this host keeps its rules", chain.to_add)};
}

} // namespace

std::vector<DroppingChain>
dropping_chains(const Json& ruleset, const std::string& bridge, BridgeHooks hooks) {
    return Ruleset(ruleset, bridge).dropping(hooks);
}

Findings forward_findings(const std::vector<std::string>& bridges, const std::string& whose) {
    Findings found;
    const std::set<std::string> once(bridges.begin(), bridges.end());
    if (once.empty()) {
        return found;
    }
    try {
        const Json ruleset = read_ruleset();
        for (const std::string& bridge : once) {
            for (const DroppingChain& chain : dropping_chains(ruleset, bridge, hooks_of(bridge))) {
                found.push_back(finding_of(chain, bridge, whose));
            }
        }
    } catch (const Error& error) {
        return {{Level::note, "firewall", fmt::format("not looked at: {}", error.what()), ""}};
    }
    if (found.empty()) {
        found.push_back({Level::ok,
                         "firewall",
                         fmt::format("no forward policy of nf_tables drops what passes through {}",
                                     fmt::join(once, ", ")),
                         ""});
    }
    return found;
}

} // namespace drover
