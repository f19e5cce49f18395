// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/tunnels.h"

#include "common/process.h"
#include "common/secrets.h"
#include "migrator/ctl.h"
#include "migrator/host_facts.h"
#include "migrator/paths.h"
#include "migrator/segment.h"
#include "tunnel/core/put_up.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <thread>

#include <netdb.h>
#include <signal.h>
#include <unistd.h>

namespace drover {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr milliseconds answer_patience{5000};
// One that was killed starts again, and what the other end says of itself comes with a ping.
constexpr milliseconds command_patience{5000};
constexpr milliseconds return_patience{12000}; // an end waits for 10 s
constexpr milliseconds close_patience{8000};   // and for a peer that does not answer, 3 s
constexpr milliseconds cleanup_patience{10000};
constexpr milliseconds pause{20};
constexpr int psk_number = 3, listener_number = 4;

json ask(const std::string& tunnel, const std::string& method, const json& params) {
    ControlClient client(paths().tunnel_control(tunnel));
    return client.call(method, params, answer_patience);
}

// Of what it says, if it says anything.
json part_of(const json& status, const char* key) {
    return status.is_object() ? status.value(key, json()) : json();
}

std::string phase_of(const json& status) {
    const json phase = part_of(status, "phase");
    return phase.is_string() ? phase.get<std::string>() : "";
}

bool link_is_up(const json& status) {
    return part_of(part_of(status, "link"), "up") == true;
}

// nullopt: nothing of it is here.
std::optional<TunnelEnd> look_at(const std::string& tunnel) {
    TunnelEnd end;
    end.name = tunnel;
    try {
        end.status = ask(tunnel, "status", json::object());
        end.home = end.status.value("role", "") == "home";
        return end;
    } catch (const Error& error) {
        end.error = error.what();
    }
    const std::string file = paths().tunnel_state(tunnel);
    const auto state = read_whole_file(file);
    if (!state) {
        return std::nullopt;
    }
    end.home = tunnel::parse_put_up(*state, file).role == tunnel::Role::home;
    return end;
}

// Tries again what an end that is starting can't do yet.
void ask_again(const std::string& tunnel, const std::string& method, const json& params) {
    const Deadline deadline = Clock::now() + command_patience;
    for (;;) {
        try {
            ask(tunnel, method, params);
            return;
        } catch (const Error& error) {
            if (Clock::now() >= deadline) {
                throw Error(error.kind(),
                            fmt::format("tunnel {}: {}: {}", tunnel, method, error.what()));
            }
        }
        std::this_thread::sleep_for(pause);
    }
}

// False: `patience` has passed. condition: told of what the end says; null: nothing is left of it.
template <class Condition>
bool wait_until(const std::string& tunnel, milliseconds patience, Condition condition) {
    const Deadline deadline = Clock::now() + patience;
    for (;;) {
        const auto end = look_at(tunnel);
        if (condition(end ? &*end : nullptr)) {
            return true;
        }
        if (Clock::now() >= deadline) {
            return false;
        }
        std::this_thread::sleep_for(pause);
    }
}

void clean_up(const std::string& tunnel) {
    const RunResult result = run_command(
        {paths().tunnel, "cleanup", tunnel}, {{"DROVER_RUN", paths().run}}, cleanup_patience);
    if (!result.status.success()) {
        throw Error(ErrorKind::io, fmt::format("tunnel {}: {}", tunnel, result.output));
    }
}

void close_end(const std::string& tunnel) {
    const auto answers = [](const TunnelEnd* end) {
        return end == nullptr || end->status.is_object();
    };
    if (!wait_until(tunnel, command_patience, answers)) {
        clean_up(tunnel); // its process has died
        return;
    }
    try {
        ask(tunnel, "close", json::object());
    } catch (const Error&) {
        // It has gone meanwhile, or it is still there after the wait.
    }
    if (!wait_until(tunnel, close_patience, [](const TunnelEnd* end) { return end == nullptr; })) {
        throw Error(ErrorKind::timeout, fmt::format("tunnel {} does not close", tunnel));
    }
    std::error_code ignored;
    fs::remove(fs::path(paths().tunnel_state(tunnel)).parent_path(), ignored); // if it is empty
}

void wait_for_kept(const TunnelEnd& end) {
    wait_until(end.name, return_patience, [](const TunnelEnd* now) {
        return now == nullptr || phase_of(now->status) != "returning" || !link_is_up(now->status);
    });
}

void take_in(const TunnelEnd& end) {
    if (phase_of(end.status) == "closing") {
        return;
    }
    if (end.home) {
        ask_again(end.name, "rollback", json{{"certain", true}});
    } else {
        ask_again(end.name, "resume", json::object());
    }
}

void let_go(const TunnelEnd& end) {
    ask_again(end.name, end.home ? "divert" : "hold", json::object());
}

void settle(const TunnelEnd& end, bool here) {
    if (here == end.home) { // the VM is where its addresses are, or has gone home
        try {
            if (here && end.status.is_object()) {
                take_in(end);
                wait_for_kept(end);
            }
        } catch (const Error&) {
            // Closing gives its frames back as well.
        }
        close_end(end.name);
    } else if (here) {
        take_in(end);
    } else if (phase_of(end.status) != "diverted" && phase_of(end.status) != "closing") {
        let_go(end);
    }
}

// Each of them, whatever becomes of the others; then throws what went wrong.
template <class Step>
void with_each_end(const std::string& vm, Step step) {
    std::string wrong;
    for (const TunnelEnd& end : tunnel_ends(vm)) {
        try {
            step(end);
        } catch (const std::exception& error) {
            wrong += (wrong.empty() ? "" : "; ") + std::string(error.what());
        }
    }
    if (!wrong.empty()) {
        throw Error(ErrorKind::io, wrong);
    }
}

// --- starting

// What has been written to it is read, and nothing more comes.
UniqueFd pipe_with(const std::string& text) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
        throw_errno("pipe");
    }
    UniqueFd reading(ends[0]);
    const UniqueFd writing(ends[1]);
    if (::write(writing.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        throw_errno("pipe"); // it has room for a key
    }
    return reading;
}

std::string last_line(const std::string& file) {
    std::string text = read_whole_file(file, 16 << 20).value_or("");
    while (!text.empty() && text.back() == '\n') {
        text.pop_back();
    }
    return text.substr(text.rfind('\n') + 1);
}

void add_nic(std::vector<std::string>& argv, const NicSpec& nic) {
    argv.insert(argv.end(), {"--mac", nic.mac});
    for (const std::string& address : nic.addresses) {
        argv.insert(argv.end(), {"--address", address});
    }
    for (const std::string& gateway : nic.gateways) {
        argv.insert(argv.end(), {"--gateway", gateway});
    }
    for (const std::string& link_local : nic.link_locals) {
        argv.insert(argv.end(), {"--link-local", link_local});
    }
}

void start_end(const SiteConfig& site,
               const std::string& vm,
               std::vector<std::string> argv,
               const TunnelKey& key,
               int listener) {
    const std::string tunnel = argv.at(2);
    const UniqueFd psk = pipe_with(fmt::format("{}:{}\n", key.user, key.key));
    make_directories(paths().vm_state(vm), 0700);
    SpawnOptions options;
    options.argv = std::move(argv);
    options.argv.insert(options.argv.end(), {"--psk-fd", std::to_string(psk_number), "--restart"});
    options.env = {{"DROVER_RUN", paths().run}};
    options.fds = {{psk.get(), psk_number}};
    if (listener >= 0) {
        options.argv.insert(options.argv.end(), {"--listen-fd", std::to_string(listener_number)});
        options.fds.emplace_back(listener, listener_number);
    }
    options.log_file = paths().tunnel_log(vm);
    options.detached = true;
    Child child = spawn(options);
    const Deadline deadline = Clock::now() + site.timeouts.start;
    for (;;) {
        const auto end = look_at(tunnel);
        if (end && end->status.is_object()) {
            return;
        }
        if (child.wait(pause)) {
            throw Error(ErrorKind::io,
                        fmt::format("tunnel {} ended at its start: {}",
                                    tunnel,
                                    last_line(options.log_file)));
        }
        if (Clock::now() >= deadline) {
            child.signal(SIGTERM);
            throw Error(
                ErrorKind::timeout,
                fmt::format("tunnel {} does not answer; its log is {}", tunnel, options.log_file));
        }
    }
}

// In numbers, as --dial takes it.
std::string dial_address(const std::string& host, uint16_t port) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_DGRAM;
    hints.ai_flags = AI_ADDRCONFIG;
    addrinfo* found = nullptr;
    int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
    char text[NI_MAXHOST] = "";
    if (error == 0) {
        error = ::getnameinfo(found->ai_addr,
                              found->ai_addrlen,
                              text,
                              sizeof text,
                              nullptr,
                              0,
                              NI_NUMERICHOST | NI_DGRAM);
        ::freeaddrinfo(found);
    }
    if (error != 0) {
        throw Error(ErrorKind::peer, fmt::format("{}: {}", host, ::gai_strerror(error)));
    }
    const std::string address = text;
    return address.find(':') == std::string::npos ? fmt::format("{}:{}", address, port)
                                                  : fmt::format("[{}]:{}", address, port);
}

} // namespace

std::vector<std::string> nic_folders(const std::string& vm) {
    const std::string prefix = Paths::tunnel_name(vm, 0).substr(0, vm.size() + 4); // "VM.nic"
    std::vector<std::pair<size_t, std::string>> found;
    std::error_code ignored; // a folder that is not there has none
    for (const auto& entry : fs::directory_iterator(paths().run, ignored)) {
        const std::string name = entry.path().filename();
        size_t nic = 0;
        const char* const last = name.data() + name.size();
        if (!name.starts_with(prefix) ||
            std::from_chars(name.data() + prefix.size(), last, nic).ptr != last ||
            name != Paths::tunnel_name(vm, nic)) {
            continue;
        }
        found.emplace_back(nic, name);
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> names;
    for (auto& [nic, name] : found) {
        names.push_back(std::move(name));
    }
    return names;
}

std::vector<TunnelEnd> tunnel_ends(const std::string& vm) {
    std::vector<TunnelEnd> ends;
    for (const std::string& name : nic_folders(vm)) {
        if (auto end = look_at(name)) {
            ends.push_back(std::move(*end));
        }
    }
    return ends;
}

bool has_tunnel(const std::vector<TunnelEnd>& ends, bool home) {
    return std::any_of(
        ends.begin(), ends.end(), [home](const TunnelEnd& end) { return end.home == home; });
}

std::string tunnel_text(const json& status) {
    const json role = part_of(status, "role"),
               flows = part_of(part_of(status, "flows"), "tcp_open");
    return fmt::format("{}, {}, link {}, {} connections",
                       role.is_string() ? role.get<std::string>() : "?",
                       phase_of(status),
                       link_is_up(status) ? "up" : "down",
                       flows.is_number_unsigned() ? flows.get<uint64_t>() : 0);
}

json tunnels_json(const std::vector<TunnelEnd>& ends) {
    json list = json::array();
    for (const TunnelEnd& end : ends) {
        list.push_back({{"name", end.name},
                        {"role", end.home ? "home" : "away"},
                        {"status", end.status},
                        {"error", end.error.empty() ? json() : json(end.error)}});
    }
    return list;
}

const std::string& home_bridge(const NicSpec& nic) {
    return nic.home_bridge.empty() ? nic.bridge : nic.home_bridge;
}

Findings tunnel_host_findings() {
    Findings found;
    if (::geteuid() != 0) {
        found.push_back({Level::problem, "tunnel", "it needs root's rights", "run drover as root"});
    } else if (!has_device("/dev/net/tun")) {
        found.push_back({Level::problem,
                         "tunnel",
                         "there is no /dev/net/tun that can be opened",
                         "`modprobe tun`, and for each boot a line `tun` in /etc/modules-load.d"});
    }
    if (!has_program(paths().tunnel)) {
        found.push_back({Level::problem,
                         "tunnel",
                         fmt::format("the program {} is not there", paths().tunnel),
                         "install it with drover, or name it in DROVER_TUNNEL"});
    }
    return found;
}

void check_home_ends(const VmFile& vm) {
    if (::geteuid() != 0) {
        throw Error(ErrorKind::usage, "a tunnel needs root's rights ([network] of the VM file)");
    }
    for (const NicSpec& nic : vm.nics) {
        const std::string& bridge = home_bridge(nic);
        if (!nic.addresses.empty() &&
            ::access(fmt::format("/sys/class/net/{}/bridge", bridge).c_str(), F_OK) != 0) {
            throw Error(ErrorKind::usage,
                        fmt::format("{}: NIC {}: '{}' is no bridge of this host, and its tunnel "
                                    "needs the one that it is attached to ('home-bridge')",
                                    vm.path,
                                    nic.mac,
                                    bridge));
        }
    }
}

void start_home_end(const SiteConfig& site,
                    const VmFile& vm,
                    size_t nic,
                    const TunnelKey& key,
                    const std::string& host,
                    uint16_t port) {
    std::vector<std::string> argv{paths().tunnel,
                                  "home",
                                  Paths::tunnel_name(vm.name, nic),
                                  "--bridge",
                                  home_bridge(vm.nics.at(nic)),
                                  "--dial",
                                  dial_address(host, port),
                                  "--keep",
                                  vm.network.keep,
                                  "--keep-at-least",
                                  vm.network.keep_at_least};
    add_nic(argv, vm.nics.at(nic));
    start_end(site, vm.name, std::move(argv), key, -1);
}

void start_away_end(const SiteConfig& site,
                    const std::string& vm,
                    size_t nic,
                    const NicSpec& spec,
                    const TunnelKey& key,
                    const std::string& port,
                    int listener) {
    std::vector<std::string> argv{
        paths().tunnel, "away", Paths::tunnel_name(vm, nic), "--port", port};
    add_nic(argv, spec);
    start_end(site, vm, std::move(argv), key, listener);
}

void wait_for_links(const std::string& vm, std::chrono::seconds patience) {
    for (const TunnelEnd& end : tunnel_ends(vm)) {
        std::string error = end.error;
        const bool up = wait_until(end.name, patience, [&error](const TunnelEnd* now) {
            const json link = now != nullptr ? part_of(now->status, "link") : json();
            const json said = part_of(link, "error");
            error = said.is_string() ? said.get<std::string>() : "";
            return part_of(link, "up") == true;
        });
        if (!up) {
            throw Error(ErrorKind::peer,
                        fmt::format("tunnel {}: the link does not come up within {} s{}{}",
                                    end.name,
                                    patience.count(),
                                    error.empty() ? "" : ": ",
                                    error));
        }
    }
}

asio::awaitable<void> let_tunnels_go(std::string vm) {
    std::function<void()> work = [vm] {
        stop_announcers(vm);
        with_each_end(vm, let_go);
    };
    co_await on_a_thread(std::move(work));
}

asio::awaitable<void> take_tunnels_in(std::string vm) {
    std::function<void()> work = [vm] { with_each_end(vm, take_in); };
    co_await on_a_thread(std::move(work));
}

asio::awaitable<void> wait_for_kept_frames(std::string vm) {
    std::function<void()> work = [vm] { with_each_end(vm, wait_for_kept); };
    co_await on_a_thread(std::move(work));
}

asio::awaitable<void> settle_tunnels(std::string vm, bool here) {
    std::function<void()> work = [vm, here] {
        if (!here) {
            stop_announcers(vm);
        }
        with_each_end(vm, [here](const TunnelEnd& end) { settle(end, here); });
    };
    co_await on_a_thread(std::move(work));
}

} // namespace drover
