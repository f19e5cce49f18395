// SPDX-License-Identifier: GPL-2.0-or-later
#include "common/error.h"
#include "common/secrets.h"
#include "common/unique_fd.h"
#include "tunnel/announcer.h"
#include "tunnel/control_socket.h"
#include "tunnel/daemon.h"
#include "tunnel/helper.h"
#include "tunnel/supervisor.h"

#include <CLI/CLI.hpp>

#include <fmt/format.h>

#include <unistd.h>

using namespace drover;
using namespace drover::tunnel;

namespace {

constexpr int exit_failed = 1, exit_usage = 2;

// What home and away are told, as text.
struct Arguments {
    std::string name, at, port, address, mac, keep = "until-idle", keep_at_least = "2h";
    std::vector<std::string> addresses, gateways, link_locals;
    std::string psk_file, user = "nobody", hold_age = "60";
    int psk_fd = -1, listen_fd = -1;
    bool restart = false, certain = false, stop = false;
    uint64_t hold_bytes = HoldLimits{}.bytes;
};

template <class T>
T required(std::optional<T> value, const std::string& option, const std::string& text) {
    if (!value) {
        throw Error(ErrorKind::usage, fmt::format("{}: '{}' is not understood", option, text));
    }
    return *value;
}

std::string read_to_end(int fd) {
    const UniqueFd owned(fd);
    std::string text;
    char buffer[4096];
    for (;;) {
        const ssize_t size = ::read(fd, buffer, sizeof buffer);
        if (size < 0) {
            throw_errno("--psk-fd");
        }
        if (size == 0) {
            return text;
        }
        text.append(buffer, static_cast<size_t>(size));
        if (text.size() > sizeof buffer) {
            throw Error(ErrorKind::usage, "--psk-fd: more than a key");
        }
    }
}

Psk read_psk(const Arguments& arguments) {
    if (arguments.psk_fd >= 0) {
        return parse_psk(read_to_end(arguments.psk_fd), "--psk-fd");
    }
    const auto text = read_whole_file(arguments.psk_file, 4096);
    if (!text) {
        throw Error(ErrorKind::usage, fmt::format("{}: there is no such file", arguments.psk_file));
    }
    return parse_psk(*text, arguments.psk_file);
}

Nic nic_of(const Arguments& arguments) {
    Nic nic;
    nic.mac = required(parse_mac(arguments.mac), "--mac", arguments.mac);
    if (nic.mac.is_group()) {
        throw Error(ErrorKind::usage, "--mac: no interface has a group's address");
    }
    for (const std::string& text : arguments.addresses) {
        nic.addresses.push_back(required(parse_prefix(text), "--address", text));
    }
    for (const std::string& text : arguments.gateways) {
        nic.gateways.push_back(required(parse_ip(text), "--gateway", text));
    }
    for (const std::string& text : arguments.link_locals) {
        nic.link_locals.push_back(required(parse_ip(text), "--link-local", text));
        if (!nic.link_locals.back().is_link_local()) {
            throw Error(ErrorKind::usage,
                        fmt::format("--link-local: '{}' is in none of fe80::/10", text));
        }
    }
    return nic;
}

DaemonOptions options_of(const Arguments& arguments, Role role) {
    DaemonOptions options;
    options.name = arguments.name;
    options.at = arguments.at;
    options.user = arguments.user;
    options.end.role = role;
    options.end.nic = nic_of(arguments);
    options.end.keep = required(parse_keep(arguments.keep), "--keep", arguments.keep);
    options.end.keep.at_least_ms = required(
        parse_duration_ms(arguments.keep_at_least), "--keep-at-least", arguments.keep_at_least);
    options.end.hold.bytes = arguments.hold_bytes;
    options.end.hold.age_ms =
        required(parse_duration_ms(arguments.hold_age), "--hold-age", arguments.hold_age);
    options.link.dials = role == Role::home;
    options.link.listener = arguments.listen_fd;
    if (arguments.listen_fd < 0) {
        options.link.address = parse_socket_address(arguments.address);
    }
    options.link.psk = read_psk(arguments);
    return options;
}

int announce(const Arguments& arguments) {
    if (arguments.stop) {
        fmt::print("{}\n", stop_announcer(arguments.name) ? "stopped" : "none was there");
        return 0;
    }
    if (arguments.at.empty() || arguments.mac.empty() || arguments.addresses.empty()) {
        throw Error(ErrorKind::usage, "announce: --bridge, --mac and --address are required");
    }
    run_announcer({arguments.name, arguments.at, arguments.port, nic_of(arguments)});
    return 0;
}

void add_common(CLI::App& command, Arguments& arguments) {
    command.add_option("NAME", arguments.name, "of the tunnel, here")->required();
    command.add_option("--mac", arguments.mac, "of the VM's interface")->required();
    command
        .add_option("--address", arguments.addresses, "ADDRESS/LENGTH: an old address; repeat it")
        ->required();
    command.add_option("--gateway", arguments.gateways, "an old gateway outside of these networks");
    command.add_option(
        "--link-local", arguments.link_locals, "the VM's own, where it is not made from its MAC");
    auto* const file =
        command.add_option("--psk-file", arguments.psk_file, "a file with the key: `user:hexkey`");
    auto* const fd =
        command.add_option("--psk-fd", arguments.psk_fd, "the same, from a descriptor")
            ->excludes(file);
    command.add_option("--user", arguments.user, "to run as")->capture_default_str();
    command.add_flag("--restart", arguments.restart, "start again, should it be killed or fail");
    command.callback([file, fd] {
        if (file->count() + fd->count() == 0) {
            throw CLI::RequiredError("--psk-file or --psk-fd");
        }
    });
}

int run(int argc, char** argv) {
    CLI::App app("Keeps connections to the old addresses of a moved VM alive.", "drover-tunnel");
    app.set_version_flag("--version", DROVER_VERSION);
    app.require_subcommand(1);
    Arguments arguments;

    auto* const home = app.add_subcommand("home", "the end at the old site, which dials");
    add_common(*home, arguments);
    home->add_option("--bridge", arguments.at, "that the VM was attached to")->required();
    home->add_option("--dial", arguments.address, "ADDRESS:PORT of the other end")->required();
    home->add_option("--keep", arguments.keep, "until-idle, forever or a time (30s, 10m, 12h, 2d)")
        ->capture_default_str();
    home->add_option("--keep-at-least", arguments.keep_at_least, "until-idle: not less than that")
        ->capture_default_str();

    auto* const away = app.add_subcommand("away", "the end where the VM goes, which listens");
    add_common(*away, arguments);
    away->add_option("--port", arguments.at, "the VM's own port there")->required();
    auto* const listen =
        away->add_option("--listen", arguments.address, "ADDRESS:PORT; * for any address");
    auto* const listen_fd =
        away->add_option("--listen-fd", arguments.listen_fd, "a bound UDP socket, instead")
            ->excludes(listen);
    away->add_option("--hold-bytes", arguments.hold_bytes, "kept for the paused VM at most")
        ->capture_default_str();
    away->add_option("--hold-age", arguments.hold_age, "and not longer")->capture_default_str();

    auto* const announced =
        app.add_subcommand("announce", "tells the VM's segment that it is here now; no tunnel");
    announced->add_option("NAME", arguments.name, "of the NIC, here")->required();
    announced->add_option("--bridge", arguments.at, "where it is told");
    announced->add_option("--port", arguments.port, "the VM's own, of that bridge");
    announced->add_option("--mac", arguments.mac, "of the VM's interface");
    announced->add_option("--address", arguments.addresses, "ADDRESS/LENGTH of it; repeat it");
    announced->add_flag("--stop", arguments.stop, "ends one that runs");

    auto* const rollback = app.add_subcommand(
        "rollback", "home: the VM stays or is back here; what was kept comes back");
    rollback->add_option("NAME", arguments.name)->required();
    rollback->add_flag("--certain", arguments.certain, "whatever the other end says");
    const std::pair<const char*, const char*> commands[] = {
        {"status", "what it does, as JSON"},
        {"divert", "home: the VM's frames go across from now on"},
        {"resume", "away: the VM runs; what was kept is delivered"},
        {"hold", "away: the VM is paused, on its way home; frames are kept from now on"},
        {"close", "both ends take down what they put up"},
        {"cleanup", "takes down what a tunnel left that was killed"},
    };
    for (const auto& [command, text] : commands) {
        app.add_subcommand(command, text)->add_option("NAME", arguments.name)->required();
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : exit_usage;
    }
    if (announced->parsed()) {
        return announce(arguments);
    }
    if (away->parsed() && listen->count() + listen_fd->count() == 0) {
        throw Error(ErrorKind::usage, "away: --listen or --listen-fd is required");
    }
    if (home->parsed() || away->parsed()) {
        DaemonOptions options = options_of(arguments, home->parsed() ? Role::home : Role::away);
        arguments.restart ? run_supervised(options) : run_daemon(std::move(options));
        return 0;
    }
    const std::string command = app.get_subcommands().front()->get_name();
    const TunnelFiles files = TunnelFiles::of(arguments.name);
    if (command == "cleanup") {
        fmt::print("{}\n", clean_up(files) ? "taken down" : "nothing was left");
        return 0;
    }
    rpc::Json params = rpc::Json::object();
    if (arguments.certain) {
        params["certain"] = true;
    }
    const rpc::Json result = ask(files.socket, command, std::move(params));
    if (command == "status") {
        fmt::print("{}\n", result.dump(2));
    }
    return 0;
}

} // namespace

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const Error& error) {
        fmt::print(stderr, "drover-tunnel: {}\n", error.what());
        return error.kind() == ErrorKind::usage ? exit_usage : exit_failed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover-tunnel: {}\n", error.what());
        return exit_failed;
    }
}
