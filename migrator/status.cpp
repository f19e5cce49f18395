// SPDX-License-Identifier: GPL-2.0-or-later
#include "migrator/status.h"

#include "migrator/cli.h"
#include "migrator/ctl.h"
#include "migrator/journal.h"
#include "migrator/paths.h"
#include "migrator/run_lock.h"
#include "migrator/serve.h"
#include "migrator/tunnels.h"
#include "migrator/vm_file.h"
#include "nbd-proxy/record_store.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <set>
#include <thread>

#include <unistd.h>

namespace drover {
namespace {

using rpc::Json;

constexpr std::chrono::milliseconds answer_timeout{5000};

bool nobody_there(const Error& error) {
    return error.sys_errno() == ENOENT || error.sys_errno() == ECONNREFUSED;
}

Json record_of(const std::string& vm, const std::string& disk) {
    const auto record = peek_record(paths().disk_state(vm, disk));
    if (!record) {
        return nullptr;
    }
    return {{"uuid", record->uuid},
            {"generation", record->generation},
            {"role", to_string(record->role)},
            {"stage", to_string(record->stage)},
            {"migration", record->migration}};
}

Json disk_status(const std::string& vm, const std::string& disk) {
    Json entry{{"name", disk},
               {"served", false},
               {"socket", paths().disk_socket(vm, disk)},
               {"port", nullptr},
               {"status", nullptr},
               {"record", nullptr},
               {"error", nullptr}};
    pid_t server = 0;
    try {
        ControlClient client(paths().disk_control(vm, disk));
        server = client.peer_pid();
        entry["served"] = true;
        entry["status"] = client.call("status", Json::object(), answer_timeout);
    } catch (const Error& error) {
        if (!nobody_there(error)) {
            entry["error"] = error.what();
            return entry;
        }
    }
    try {
        entry["record"] = record_of(vm, disk);
        if (const auto note = read_disk_note(vm, disk); note && note->pid == server) {
            entry["port"] = note->port;
        }
    } catch (const Error& error) {
        entry["error"] = error.what();
    }
    return entry;
}

Json migration_status(const std::string& vm) {
    try {
        ControlClient client(paths().migrate_socket(vm));
        return client.call("status", Json::object(), answer_timeout);
    } catch (const Error& error) {
        return nobody_there(error) ? Json() : Json{{"error", error.what()}};
    }
}

std::vector<std::string> names_in(const std::string& directory) {
    std::vector<std::string> names;
    std::error_code ignored; // one that is not there has none
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored)) {
        if (entry.is_directory(ignored) && valid_name(entry.path().filename().string())) {
            names.push_back(entry.path().filename());
        }
    }
    return names;
}

// Disks that the VM file does not tell of: served, or with a record.
std::vector<std::string> disks_on_host(const std::string& vm) {
    std::set<std::string> names;
    for (const std::string& name : names_in(paths().vm_state(vm))) {
        names.insert(name);
    }
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(paths().vm_run(vm), ignored)) {
        const std::string stem = entry.path().stem();
        if (entry.path().extension() == ".ctl" && valid_disk_name(stem)) {
            names.insert(stem);
        }
    }
    return {names.begin(), names.end()};
}

std::vector<std::string> all_vms() {
    const std::vector<std::string> files = vm_names();
    std::set<std::string> names(files.begin(), files.end());
    for (const std::string& directory : {paths().run, paths().state}) {
        for (const std::string& name : names_in(directory)) {
            if (!disks_on_host(name).empty()) {
                names.insert(name);
            }
        }
    }
    return {names.begin(), names.end()};
}

Json status_of(const SiteConfig& site, const std::string& name_or_path) {
    const KnownVm vm = find_known(site, name_or_path);
    return vm_status(vm.name, vm.disks);
}

// One that can't be told of does not hide the others.
std::vector<Json> status_of_all(const SiteConfig& site) {
    std::vector<Json> found;
    for (const std::string& name : all_vms()) {
        try {
            found.push_back(status_of(site, name));
        } catch (const Error& error) {
            fmt::print(stderr, "drover: {}\n", error.what());
        }
    }
    return found;
}

std::string text_of(const Json& value) {
    return value.is_null() ? "-" : value.is_string() ? value.get<std::string>() : value.dump();
}

// What the journal says; null if it says nothing, or that all is over, or somebody is at work.
Json unfinished_migration(const std::string& vm) {
    try {
        if (RunLock(paths().migrate_lock(vm)).is_held() ||
            RunLock(paths().agent_lock(vm)).is_held()) {
            return nullptr;
        }
        const auto journal = read_journal(paths().journal(vm));
        if (!journal || journal->over()) {
            return nullptr;
        }
        return {{"side", journal->text("side")},
                {"migration", journal->text("migration")},
                {"step", journal->last ? Json(step_name(*journal->last)) : Json()}};
    } catch (const Error& error) {
        return {{"error", error.what()}};
    }
}

Json tunnels_of(const std::string& vm) {
    try {
        return tunnels_json(tunnel_ends(vm));
    } catch (const Error& error) {
        return Json::array({{{"error", error.what()}}});
    }
}

// What compression makes of the data; empty where it gains nothing.
std::string compression_text(const Json& replication) {
    const Json compress = replication.value("compress", Json::object());
    const uint64_t raw = compress.value("raw_bytes", uint64_t{0});
    const uint64_t coded = compress.value("coded_bytes", uint64_t{0});
    return coded == 0 || raw < coded + coded / 50
               ? ""
               : fmt::format(", compressed {:.1f}:1",
                             static_cast<double>(raw) / static_cast<double>(coded));
}

std::string replication_text(const Json& status) {
    const Json replication = status.value("replication", Json());
    const Json replica = status.value("replica", Json());
    if (replication.is_object()) {
        const std::string phase = text_of(replication.value("phase", Json()));
        const Json error = replication.value("error", Json());
        if (!error.is_null()) {
            return phase + ": " + text_of(error);
        }
        const Json limit = replication.value("throttle_limit", Json());
        return fmt::format("{}, {} dirty, lag {}, {}/s{}{}",
                           phase,
                           format_size(replication.value("dirty_bytes", uint64_t{0})),
                           format_size(replication.value("lag_bytes", uint64_t{0})),
                           format_size(replication.value("drain_rate", uint64_t{0})),
                           compression_text(replication),
                           limit.is_number() ? fmt::format(", writers slowed to {}/s",
                                                           format_size(limit.get<uint64_t>()))
                                             : "");
    }
    if (replica.is_object()) {
        return fmt::format("{} received{}{}",
                           format_size(replica.value("received_bytes", uint64_t{0})),
                           replica.value("consistent", false) ? ", consistent" : "",
                           replica.value("handed_over", false) ? ", handed over" : "");
    }
    return "-";
}

using Row = std::array<std::string, 7>;

Row row_of(const Json& vm, const Json& disk) {
    const Json& status = disk["status"];
    const Json& known = status.is_object() ? status : disk["record"];
    Row row{text_of(vm["name"]),
            text_of(disk["name"]),
            disk["served"] == true ? "yes" : "no",
            "-",
            "-",
            "-",
            "-"};
    if (known.is_object()) {
        row[3] = text_of(known.value("role", Json()));
        row[4] = text_of(known.value("generation", Json()));
    }
    if (status.is_object()) {
        row[5] = format_size(status.value("size", uint64_t{0}));
        row[6] = replication_text(status);
    }
    if (!disk["error"].is_null()) {
        row[6] = text_of(disk["error"]);
    }
    return row;
}

void print(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

} // namespace

KnownVm find_known(const SiteConfig& site, const std::string& name_or_path) {
    std::string name = name_or_path;
    std::vector<std::string> disks;
    std::optional<Error> no_file;
    try {
        const VmFile vm = load_vm_file(site, name_or_path, HostCheck::may_be_missing);
        name = vm.name;
        for (const DiskSpec& disk : vm.disks) {
            disks.push_back(disk.name);
        }
    } catch (const Error& error) {
        no_file = error;
    }
    if (no_file && no_file->kind() == ErrorKind::refused) {
        fmt::print(stderr, "drover: warning: {}\n", no_file->what());
    }
    if (valid_name(name)) {
        for (const std::string& disk : disks_on_host(name)) {
            if (std::find(disks.begin(), disks.end(), disk) == disks.end()) {
                disks.push_back(disk);
            }
        }
    }
    if (disks.empty() && no_file) {
        throw *no_file;
    }
    return {name, disks};
}

Json vm_status(const std::string& vm, const std::vector<std::string>& disks) {
    Json status{{"name", vm},
                {"disks", Json::array()},
                {"migration", migration_status(vm)},
                {"unfinished", unfinished_migration(vm)},
                {"tunnels", tunnels_of(vm)}};
    for (const std::string& disk : disks) {
        status["disks"].push_back(disk_status(vm, disk));
    }
    return status;
}

std::string status_table(const std::vector<Json>& vms) {
    std::vector<Row> rows{{"VM", "DISK", "SERVED", "ROLE", "GENERATION", "SIZE", "REPLICATION"}};
    for (const Json& vm : vms) {
        for (const Json& disk : vm["disks"]) {
            rows.push_back(row_of(vm, disk));
        }
    }
    std::array<size_t, std::tuple_size_v<Row>> widths{};
    for (const Row& row : rows) {
        for (size_t i = 0; i < row.size(); ++i) {
            widths[i] = std::max(widths[i], row[i].size());
        }
    }
    std::string text;
    for (const Row& row : rows) {
        for (size_t i = 0; i + 1 < row.size(); ++i) {
            text += fmt::format("{:<{}}  ", row[i], widths[i]);
        }
        text += row.back() + "\n";
    }
    for (const Json& vm : vms) {
        const Json& migration = vm["migration"];
        if (migration.is_object()) {
            text +=
                fmt::format("{}: moving to {}: {}\n",
                            text_of(vm["name"]),
                            text_of(migration.value("to", Json())),
                            text_of(migration.value("phase", migration.value("error", Json()))));
        }
    }
    for (const Json& vm : vms) {
        for (const Json& end : vm.value("tunnels", Json::array())) {
            const Json status = end.value("status", Json());
            text += fmt::format("{}: tunnel {}: {}\n",
                                text_of(vm["name"]),
                                text_of(end.value("name", Json())),
                                status.is_object() ? tunnel_text(status)
                                                   : text_of(end.value("error", Json())));
        }
    }
    for (const Json& vm : vms) {
        const Json unfinished = vm.value("unfinished", Json());
        if (unfinished.is_object()) {
            text += fmt::format(
                "{0}: a migration has not come to its end ({1}): `drover recover {0}`\n",
                text_of(vm["name"]),
                text_of(unfinished.value("step", unfinished.value("error", Json()))));
        }
    }
    return text;
}

int run_status(const SiteConfig& site,
               const std::optional<std::string>& vm,
               const StatusOptions& options) {
    const bool clear = options.watch && !options.json && ::isatty(STDOUT_FILENO) == 1;
    for (;;) {
        const std::vector<Json> found =
            vm ? std::vector{status_of(site, *vm)} : status_of_all(site);
        if (options.json) {
            print(Json{{"vms", found}}.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
        } else {
            print((clear ? "\x1b[H\x1b[J" : "") + status_table(found));
        }
        if (!options.watch) {
            return exit_done;
        }
        std::this_thread::sleep_for(std::chrono::seconds(1));
    }
}

} // namespace drover
