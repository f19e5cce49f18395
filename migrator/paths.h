// SPDX-License-Identifier: GPL-2.0-or-later
// Where things are. The environment is read once, at the first call.
#pragma once

#include <string>

namespace drover {

struct Paths {
    std::string run;         // $DROVER_RUN, /run/drover
    std::string state;       // $DROVER_STATE, /var/lib/drover/state
    std::string conf;        // $DROVER_CONF, /etc/drover/drover.toml
    std::string plugin;      // $DROVER_PLUGIN, or "drover": nbdkit looks for it
    std::string xen;         // $DROVER_XEN, or where it is installed: the driver for Xen
    std::string nbdkit;      // "nbdkit"
    std::string tunnel;      // $DROVER_TUNNEL, or "drover-tunnel": looked up in PATH
    bool conf_named = false; // $DROVER_CONF was set: the file must exist

    std::string vm_files() const;                      // vm.d beside conf
    std::string vm_run(const std::string& vm) const;   // RUN/VM
    std::string vm_state(const std::string& vm) const; // STATE/VM
    std::string disk_socket(const std::string& vm,
                            const std::string& disk) const; // RUN/VM/DISK.sock
    std::string disk_device(const std::string& vm,
                            const std::string& disk) const; // RUN/VM/DISK.dev: of the kernel's nbd
    std::string disk_control(const std::string& vm,
                             const std::string& disk) const; // RUN/VM/DISK.ctl
    std::string disk_record(const std::string& vm,
                            const std::string& disk) const; // RUN/VM/DISK.json
    std::string disk_state(const std::string& vm, const std::string& disk) const; // STATE/VM/DISK
    std::string disk_psk(const std::string& vm, const std::string& disk) const; // STATE/VM/DISK/psk
    std::string disk_log(const std::string& vm, const std::string& disk) const; // STATE/VM/DISK/log
    std::string qmp_socket(const std::string& vm) const;     // RUN/VM/qmp.sock: a VM that came in
    std::string hypervisor_log(const std::string& vm) const; // STATE/VM/hypervisor.log
    // The one of NIC `nic` of the VM: its files are in RUN/NAME.
    static std::string tunnel_name(const std::string& vm, size_t nic); // VM.nicN
    std::string tunnel_control(const std::string& name) const;         // RUN/NAME/tunnel.ctl
    std::string announcer_control(const std::string& name) const;      // RUN/NAME/announce.ctl
    std::string tunnel_state(const std::string& name) const;           // RUN/NAME/tunnel.state
    std::string tunnel_log(const std::string& vm) const;               // STATE/VM/tunnel.log
    std::string migrate_socket(const std::string& vm) const; // RUN/VM/migrate.sock: its coordinator
    std::string journal(const std::string& vm) const;        // STATE/VM/journal
    std::string dns_state(const std::string& vm) const;      // STATE/VM/dns.state
    std::string migrate_lock(const std::string& vm) const;   // STATE/VM/migrate.lock
    std::string agent_lock(const std::string& vm) const;     // STATE/VM/agent.lock
    // STATE/VM/vm.toml: the VM file of a VM that came in, written by the agent (to_toml).
    std::string arrived_vm_file(const std::string& vm) const;
};

// From the environment; relative paths are made absolute (what is started later runs in /).
const Paths& paths();

// mkdir -p with the mode for what is made. Throws Error(io).
void make_directories(const std::string& path, unsigned mode);

// What was made, renamed or removed in it is durable. Throws Error(io).
void sync_directory(const std::string& path);
// Writes, fsyncs and renames, so that a reader sees the old or the new text. Throws Error(io).
void write_file_atomically(const std::string& path, const std::string& text, unsigned mode);

// Throws Error(io).
std::string read_file(const std::string& path);

} // namespace drover
