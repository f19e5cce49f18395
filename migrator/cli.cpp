// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/cli.h"

#include "migrator/agent.h"
#include "migrator/check.h"
#include "migrator/coordinator.h"
#include "migrator/ctl.h"
#include "migrator/dns_command.h"
#include "migrator/guardian.h"
#include "migrator/paths.h"
#include "migrator/recover.h"
#include "migrator/status.h"
#include "migrator/vm_file.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>

namespace drover {
namespace {

// A subcommand's work: what it returns is the exit status.
using Action = std::function<int()>;

struct Program {
    CLI::App app{"Moves running virtual machines, with their disks, between sites.\n"
                 "Manual: drover(1). VM files: drover-vm(5). This site: drover.toml(5).",
                 "drover"};
    Action chosen;
};

// "20M": bytes per second.
std::string check_rate(std::string& text) {
    const auto bytes = parse_size(text);
    if (!bytes) {
        return fmt::format("a rate in bytes per second is expected, such as 20M or 1G, not {}",
                           text);
    }
    text = std::to_string(*bytes);
    return "";
}

CLI::Option* add_vm(CLI::App& command, std::string& vm) {
    return command.add_option("VM", vm, "Name of the VM, or path of its VM file")->required();
}

// The options that say how to reach the other site.
CLI::Option* add_peer(CLI::App& command, PeerOptions& peer) {
    auto* host =
        command.add_option("HOST", peer.host, "The destination, as the rsh command takes it");
    command
        .add_option("--rsh",
                    peer.rsh,
                    "Command that runs `drover agent --stdio` there; {host} in it stands for HOST, "
                    "else HOST follows it")
        ->type_name("CMD")
        ->take_last()
        ->capture_default_str();
    command
        .add_option(
            "--data-address", peer.data_address, "Address that the data links dial (default: HOST)")
        ->type_name("ADDR")
        ->take_last();
    return host;
}

void add_serve(Program& program) {
    struct Options {
        std::string vm;
        bool foreground = false, stop = false;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        program.app.add_subcommand("serve", "Serve the VM's disks to its hypervisor");
    add_vm(*command, options->vm);
    auto* foreground = command->add_flag(
        "--foreground", options->foreground, "Stay until SIGINT or SIGTERM, then stop them");
    command->add_flag("--stop", options->stop, "Stop serving: everything is flushed first")
        ->excludes(foreground);
    command->final_callback([&program, options] {
        program.chosen = [options] {
            const SiteConfig site = load_site_config();
            return options->stop ? run_serve_stop(site, options->vm)
                                 : run_serve(site, options->vm, options->foreground);
        };
    });
}

template <typename Value>
CLI::Option* add_downtime(CLI::App& command, Value& value) {
    return command
        .add_option("--downtime", value, "Longest pause for the last of disks and memory, in ms")
        ->type_name("MS")
        ->take_last()
        ->check(CLI::Range(1, 600000));
}

template <typename Value>
void add_bandwidth(CLI::App& command, Value& value, const std::string& none) {
    command
        .add_option("--max-bandwidth",
                    value,
                    fmt::format("Bytes per second over all links, such as 20M ({})", none))
        ->type_name("RATE")
        ->take_last()
        ->transform(CLI::Validator(check_rate, ""));
}

// What a migration is told, by `drover migrate` and by `drover check` alike.
struct MigrateWords {
    std::string vm;
    MigrateOptions migrate;
    uint64_t converge_timeout_s = 0, stall_timeout_s = 600;
    std::string memory = "auto";
    bool allow_postcopy = false;
    std::vector<std::string> bases;

    // The VM's file, and `migrate` as it says.
    VmFile load(const SiteConfig& site) {
        migrate.converge_timeout = std::chrono::seconds(converge_timeout_s);
        migrate.stall_timeout = std::chrono::seconds(stall_timeout_s);
        if (allow_postcopy && memory == "precopy") {
            throw Error(ErrorKind::usage,
                        "--memory precopy and --allow-postcopy exclude each other");
        }
        migrate.postcopy_at_once = memory == "postcopy";
        migrate.memory.postcopy = allow_postcopy || migrate.postcopy_at_once;
        migrate.memory.check();
        VmFile file = load_vm_file(site, vm, HostCheck::must_exist);
        migrate.bases = bases_of(file, bases);
        return file;
    }
};

void add_memory_words(CLI::App& command, MigrateWords& words) {
    MemoryWays& ways = words.migrate.memory;
    command
        .add_option(
            "--memory",
            words.memory,
            "precopy: all of it before the VM runs there; postcopy: after one pass the VM runs "
            "there, and what it touches follows first; auto: precopy, and with "
            "--allow-postcopy that rather than give up")
        ->type_name("HOW")
        ->take_last()
        ->check(CLI::IsMember({"auto", "precopy", "postcopy"}))
        ->capture_default_str();
    command.add_flag(
        "--allow-postcopy",
        words.allow_postcopy,
        "Should the memory not converge, end in post-copy. There is no way back from it: "
        "the VM is lost if either host dies before all of its memory is there");
    command
        .add_option("--memory-compress",
                    ways.compress,
                    "Of the memory: none, xbzrle (what has changed of a page that was sent before) "
                    "or zstd")
        ->type_name("HOW")
        ->take_last()
        ->check(CLI::IsMember({"none", "xbzrle", "zstd"}))
        ->capture_default_str();
    command.add_option("--memory-connections", ways.connections, "TCP connections for the memory")
        ->type_name("N")
        ->take_last()
        ->check(CLI::Range(1U, MemoryWays::most_connections))
        ->capture_default_str();
    command.add_flag(
        "--auto-converge",
        ways.auto_converge,
        "Slow the VM's processors down, step by step, while it changes more memory than is "
        "sent");
}

void add_migrate_words(CLI::App& command, MigrateWords& words) {
    MigrateOptions& migrate = words.migrate;
    add_vm(command, words.vm);
    CLI::Option* host = add_peer(command, migrate.peer);
    CLI::Option* to =
        command
            .add_option("--to",
                        migrate.peer.to_uri,
                        "Any NBD server as the destination (with --disk-only); {disk} in "
                        "it stands for the disk's name")
            ->type_name("NBD-URI")
            ->take_last()
            ->excludes(host);
    add_downtime(command, migrate.downtime_ms)->capture_default_str();
    add_bandwidth(command, migrate.max_bandwidth, "default: 0, no limit");
    command
        .add_option("--compress",
                    migrate.compress,
                    "Of the disks' data: auto (as far as it makes this link faster), zstd or none")
        ->type_name("HOW")
        ->take_last()
        ->check(CLI::IsMember({"auto", "zstd", "none"}))
        ->capture_default_str();
    command
        .add_option_function<std::string>(
            "--connections",
            [&migrate](const std::string& number) {
                migrate.connections =
                    number == "auto" ? 0 : static_cast<unsigned>(std::stoul(number));
            },
            "TCP connections for each disk, 1 to 16; auto (default): 2, and more where packets are "
            "lost and more of them are faster")
        ->type_name("N")
        ->take_last()
        ->check(CLI::IsMember({"auto"}) | CLI::Range(1, 16));
    add_memory_words(command, words);
    command
        .add_option("--converge-timeout",
                    words.converge_timeout_s,
                    "Give up when it is not ready after so many seconds (default: never)")
        ->type_name("S")
        ->take_last()
        ->check(CLI::Range(1, 31536000));
    command
        .add_option("--stall-timeout",
                    words.stall_timeout_s,
                    "Give up when the disks, or then the memory, get no nearer for so many "
                    "seconds; 0: never")
        ->type_name("S")
        ->take_last()
        ->check(CLI::Range(0, 31536000))
        ->capture_default_str();
    command
        .add_option("--base",
                    words.bases,
                    "Start the disk there from IMAGE, a file of that site, and send what differs")
        ->type_name("[DISK=]IMAGE")
        ->allow_extra_args(false)
        ->excludes(to);
    auto* disk_only = command.add_flag(
        "--disk-only", migrate.disk_only, "Move the disks; the VM stays and reaches them there");
    command
        .add_flag(
            "--detach", migrate.detach, "With --disk-only: the disks are not used here any more")
        ->needs(disk_only);
    to->needs(disk_only);
    command
        .add_flag("--verify",
                  migrate.verify,
                  "After the switchover, while the VM runs there: compare both sides' hashes")
        ->excludes(to);
    command
        .add_flag("--release-source",
                  migrate.release_source,
                  "Remove the disks' image files here, once --verify has found no difference")
        ->needs("--verify");
}

void add_migrate(Program& program) {
    auto words = std::make_shared<MigrateWords>();
    MigrateOptions& migrate = words->migrate;
    CLI::App* command = program.app.add_subcommand("migrate", "Move a running VM to another site");
    add_migrate_words(*command, *words);
    command->parse_complete_callback([&migrate] {
        if (migrate.peer.host.empty() && migrate.peer.to_uri.empty()) {
            throw CLI::RequiredError("migrate: HOST");
        }
    });
    command->add_flag(
        "--dry-run", migrate.dry_run, "Let both sites check everything, and start nothing");
    command->add_flag("--json", migrate.json, "Progress and report as JSON, a line each");
    command->final_callback([&program, words] {
        program.chosen = [words] {
            const SiteConfig site = load_site_config();
            const VmFile vm = words->load(site);
            return run_migrate(site, vm, words->migrate);
        };
    });
}

void add_check(Program& program) {
    auto words = std::make_shared<MigrateWords>();
    CLI::App* command = program.app.add_subcommand(
        "check", "Say what a migration would trip over, here and at HOST; change nothing");
    add_migrate_words(*command, *words);
    command->add_flag("--json", words->migrate.json, "The findings as one JSON object");
    command->final_callback([&program, words] {
        program.chosen = [words] {
            const SiteConfig site = load_site_config();
            const VmFile vm = words->load(site);
            return run_check(site, vm, words->migrate);
        };
    });
}

void add_verify(Program& program) {
    struct Options {
        std::string vm;
        VerifyOptions verify;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = program.app.add_subcommand(
        "verify", "Compare the VM's disks with those at another site, by hash");
    add_vm(*command, options->vm);
    add_peer(*command, options->verify.peer)->required();
    command->add_flag("--json", options->verify.json, "The result as JSON");
    command->final_callback([&program, options] {
        program.chosen = [options] {
            const SiteConfig site = load_site_config();
            const VmFile vm = load_vm_file(site, options->vm, HostCheck::must_exist);
            return run_verify(site, vm, options->verify);
        };
    });
}

void add_agent(Program& program) {
    CLI::App* command = program.app.add_subcommand(
        "agent", "The destination's side of a migration; `drover migrate` starts it");
    command
        ->add_flag(
            "--stdio", [](int64_t) {}, "Speak with the coordinator on stdin and stdout")
        ->required();
    command->final_callback(
        [&program] { program.chosen = [] { return run_agent_stdio(load_site_config()); }; });
}

void add_status(Program& program) {
    struct Options {
        std::string vm;
        StatusOptions status;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = program.app.add_subcommand(
        "status", "Show the VMs of this host, their disks and migrations");
    command->add_option("VM", options->vm, "Name of the VM, or path of its VM file (default: all)");
    command->add_flag("--json", options->status.json, "As JSON");
    command->add_flag("--watch", options->status.watch, "Again each second, until a signal");
    command->final_callback([&program, options] {
        program.chosen = [options] {
            const auto vm = options->vm.empty() ? std::nullopt : std::optional(options->vm);
            return run_status(load_site_config(), vm, options->status);
        };
    });
}

void add_abort(Program& program) {
    auto vm = std::make_shared<std::string>();
    CLI::App* command = program.app.add_subcommand("abort", "End a migration: the VM goes on here");
    add_vm(*command, *vm);
    command->final_callback(
        [&program, vm] { program.chosen = [vm] { return run_abort(load_site_config(), *vm); }; });
}

void add_set(Program& program) {
    struct Options {
        std::string vm;
        SetOptions set;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        program.app.add_subcommand("set", "Change the limits of a migration while it runs");
    add_vm(*command, options->vm);
    CLI::App* limits = command->add_option_group("LIMITS")->require_option(1, 2);
    add_bandwidth(*limits, options->set.max_bandwidth, "0: no limit");
    add_downtime(*limits, options->set.downtime_ms);
    command->final_callback([&program, options] {
        program.chosen = [options] {
            return run_set(load_site_config(), options->vm, options->set);
        };
    });
}

void add_recover(Program& program) {
    struct Options {
        std::string vm;
        RecoverOptions recover;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command = program.app.add_subcommand(
        "recover", "Bring a migration that was interrupted to an end, here or at the other side");
    add_vm(*command, options->vm);
    command->add_option("HOST",
                        options->recover.peer.host,
                        "The other side (default: where the VM was being moved to)");
    command
        ->add_option("--rsh",
                     options->recover.peer.rsh,
                     "Command that runs `drover agent --stdio` there, as migrate has it")
        ->type_name("CMD")
        ->take_last()
        ->capture_default_str();
    command->add_flag("--i-know-the-other-side-is-dead",
                      options->recover.other_side_is_dead,
                      "Take the VM although the other side, which may run it, does not answer");
    command->final_callback([&program, options] {
        program.chosen = [options] {
            return run_recover(load_site_config(), options->vm, options->recover);
        };
    });
}

void add_dns(Program& program) {
    struct Options {
        std::string vm;
        DnsOptions dns;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        program.app.add_subcommand("dns", "Show the VM's DNS records, or change them by hand");
    add_vm(*command, options->vm);
    auto* lower = command->add_flag(
        "--lower", options->dns.lower, "Give them the TTL of the move, ahead of it");
    auto* restore = command->add_flag(
        "--restore", options->dns.restore, "The VM stays: give them the TTL they had");
    auto* moved =
        command
            ->add_option("--moved",
                         options->dns.moved_host,
                         "The VM runs at HOST: give its names the addresses that it has there")
            ->type_name("HOST");
    command
        ->add_flag(
            "--settle", options->dns.settle, "Do what a migration could not do at the DNS server")
        ->excludes(lower)
        ->excludes(restore)
        ->excludes(moved);
    restore->excludes(lower)->excludes(moved);
    moved->excludes(lower);
    command->final_callback([&program, options] {
        program.chosen = [options] {
            const SiteConfig site = load_site_config();
            const VmFile vm = load_vm_file(site, options->vm, HostCheck::may_be_missing);
            return run_dns(site, vm, options->dns);
        };
    });
}

void add_guardian(Program& program) {
    auto vm = std::make_shared<std::string>();
    CLI::App* command = program.app.add_subcommand("guardian", "Started by `drover migrate`");
    command->group(""); // not for people
    add_vm(*command, *vm);
    command->final_callback([&program, vm] {
        program.chosen = [vm] { return run_guardian(load_site_config(), *vm); };
    });
}

void add_ctl(Program& program) {
    struct Options {
        std::string socket, method, params;
    };
    auto options = std::make_shared<Options>();
    CLI::App* command =
        program.app.add_subcommand("ctl", "Call a method of a control socket by hand");
    command->add_option("SOCKET", options->socket, "Path of the socket, or VM/DISK")->required();
    command->add_option("METHOD", options->method, "status, subscribe, set, cancel, ...")
        ->required();
    command->add_option("JSON", options->params, "Parameters, a JSON object");
    command->final_callback([&program, options] {
        program.chosen = [options] {
            return run_ctl(options->socket, options->method, options->params);
        };
    });
}

} // namespace

std::map<std::string, std::string> bases_of(const VmFile& vm,
                                            const std::vector<std::string>& given) {
    std::map<std::string, std::string> bases;
    for (const std::string& text : given) {
        const size_t equals = text.find('=');
        const auto named = std::find_if(vm.disks.begin(), vm.disks.end(), [&](const DiskSpec& d) {
            return equals != std::string::npos && d.name == text.substr(0, equals);
        });
        const bool is_named = named != vm.disks.end();
        if (!is_named && vm.disks.size() != 1) {
            throw Error(ErrorKind::usage,
                        fmt::format("--base {}: {} has {} disks: DISK=IMAGE is expected",
                                    text,
                                    vm.name,
                                    vm.disks.size()));
        }
        const std::string image = is_named ? text.substr(equals + 1) : text;
        const std::string& disk = is_named ? named->name : vm.disks.front().name;
        if (image.empty() || !bases.emplace(disk, image).second) {
            throw Error(ErrorKind::usage,
                        fmt::format("--base {}: one image for each disk is expected", text));
        }
    }
    return bases;
}

int run_cli(int argc, char** argv) {
    Program program;
    program.app.set_version_flag(
        "--version", "drover " DROVER_VERSION, "Print the version and exit");
    program.app.require_subcommand(1);
    program.app.get_formatter()->column_width(34);
    add_serve(program);
    add_check(program);
    add_migrate(program);
    add_status(program);
    add_set(program);
    add_abort(program);
    add_recover(program);
    add_verify(program);
    add_dns(program);
    add_ctl(program);
    add_agent(program);
    add_guardian(program);
    try {
        program.app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return program.app.exit(error) == 0 ? exit_done : exit_usage;
    }
    try {
        return program.chosen();
    } catch (const Error& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return error.kind() == ErrorKind::usage ? exit_usage : exit_failed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "drover: {}\n", error.what());
        return exit_failed;
    }
}

} // namespace drover
